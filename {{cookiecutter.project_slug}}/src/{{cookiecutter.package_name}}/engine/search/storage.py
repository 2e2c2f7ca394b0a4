"""Where Optuna keeps a search: a file in the search's folder, or the database that `SEARCH_STORAGE` names."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..console import shown
from ..errors import UserError

PACKAGE = __name__.split(".")[0]
LOCK = ".search.lock"  # of the search, and of each trial in its folder; a run has a lock of its own
PATIENCE = 20  # seconds for a file that another process holds


def open_study(folder: Path, mode: str = "min") -> optuna.Study:
    """The search of the folder's name, in a file of the folder or where `SEARCH_STORAGE` says."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    given = os.environ.get("SEARCH_STORAGE")
    file = URL.create("sqlite", database=str(folder / "search.db")).render_as_string()
    # Without a pool a file is closed after each use, and not only when Python comes to it.
    is_file = (given or file).startswith("sqlite")
    of_a_file = {"connect_args": {"timeout": PATIENCE}, "poolclass": NullPool} if is_file else {}
    try:
        storage = RDBStorage(given or file, engine_kwargs=of_a_file)
    except (ImportError, ValueError) as error:
        raise UserError(f"SEARCH_STORAGE cannot be used: {' '.join(str(error).split())}") from error
    return optuna.create_study(
        storage=storage,
        study_name=f"{PACKAGE}/{folder.name}",
        direction="minimize" if mode == "min" else "maximize",
        load_if_exists=True,
    )


@contextmanager
def usable_storage(folder: Path) -> Iterator[None]:
    """What a storage raises that is locked, damaged or out of reach becomes one sentence."""
    try:
        yield
    except (SQLAlchemyError, OptunaError) as error:
        place = "SEARCH_STORAGE" if "SEARCH_STORAGE" in os.environ else shown(folder / "search.db")
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise UserError(
            f"the search's storage {place} cannot be used ({reason}): end what else holds it, restore it, "
            "or begin another search with name=<another>."
        ) from error


def refuse_another_folder(folder: Path, study: optuna.Study) -> None:
    """Locks say which trials run, and lie in the folder: two folders would take each other's trials for lost."""
    file, known = folder / ".search.id", study.user_attrs.get("id")
    if known is None:
        file.write_text(secrets.token_hex(), encoding="utf-8")
        study.set_user_attr("id", file.read_text(encoding="utf-8"))
    elif not file.is_file() or file.read_text(encoding="utf-8") != known:
        raise UserError(
            f"the search '{folder.name}' in this storage is that of another folder: share that folder, "
            "or begin another search with name=<another>."
        )
