"""What can be said of the files of one's own data without torch, so that a mistake is refused at once."""

from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError, nearest

# Tables that ship with scikit-learn, by the name that is given instead of a path; the last one is for regression.
BUNDLED = ("breast_cancer", "iris", "wine", "diabetes")


def table_file(path: str) -> Path | None:
    """Returns the file of a table, or None for a bundled one; raises `UserError` if there is neither."""
    file = Path(path).expanduser()
    if not file.exists() and path in BUNDLED:
        return None
    if not file.is_file():
        *first, last = BUNDLED
        raise UserError(
            f"data.path={path} does not exist: give a CSV or Parquet file, or {', '.join(first)} or {last}."
        )
    return file


def checked_column(names: Iterable[str], name: str | None, option: str, path: str) -> str:
    """Returns the name of a column; raises `UserError` if none is given, or the table has no such column."""
    if name is None:
        raise UserError(f"data.{option}= is needed: {path} has the columns {', '.join(names)}.")
    if name not in names:
        raise UserError(f"data.{option}={name} is no column of {path}; {nearest(name, names)}")
    return name


def check_columns(names: Iterable[str], given: Iterable[str], option: str) -> None:
    for name in given:
        if name not in names:
            raise UserError(f"data.{option}=[{name}] is no column of the table; {nearest(name, names)}")


def picture_root(root: str | None) -> Path:
    """Returns the folder or the CSV of pictures; raises `UserError` if it is not there."""
    if root is None:
        raise UserError("data.root= is needed: give a folder with a folder for each label, or a CSV of path, label.")
    if not Path(root).exists():
        raise UserError(f"data.root={root} does not exist: give a folder with a folder for each label, or a CSV.")
    return Path(root)
