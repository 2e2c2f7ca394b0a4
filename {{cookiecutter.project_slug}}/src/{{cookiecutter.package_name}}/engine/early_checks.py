"""Refuses what can be refused without torch, whose import takes seconds: files, columns, formats."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config.command_line import Config

FROM_CHECKPOINT = ("evaluate", "export")


def checked(command: str, config: "Config") -> "Config":
    """Returns the options with the checkpoint that `ckpt_path=latest` means; raises `UserError` for a mistake."""
    data, ckpt_path = config.get("data"), config.get("ckpt_path")
    if command in ("train", "search") and isinstance(data, Mapping):
        _check_data(data)
    if command == "export":
        import_module(".export.options", __package__).checked_options(config)
    if command not in ("train", *FROM_CHECKPOINT):
        return config
    records = import_module(".runs.run_record", __package__)
    if command in FROM_CHECKPOINT and isinstance(ckpt_path, str):
        path = records.find_checkpoint(ckpt_path, Path(config["paths"]["log_dir"]))
        records.check_checkpoint(path)
        return {**config, "ckpt_path": str(path)}
    goes_on = records.goes_on(config["paths"]["output_dir"], config.get("resume"))
    for option in ("ckpt_path", "weights"):
        if isinstance(given := config.get(option), str) and not goes_on:
            records.check_checkpoint(Path(given).expanduser(), option)
    return config


def _check_data(data: Mapping[str, Any]) -> None:
    """Looks at the files of the engine's own DataModules; those of the owner are looked at when they are built."""
    place = str(data.get("_target_", "")).partition(".engine.data.")[2]
    files = import_module(".data.given_files", __package__)
    if place == "image_folder.ImageFolderDataModule":
        files.picture_root(data.get("root"))
    if place != "table.TableDataModule" or not isinstance(path := data.get("path"), str):
        return
    if (file := files.table_file(path)) is None:
        return
    try:
        names = import_module(".inference.tables", __package__).names_of(file)
    except Exception:  # a damaged file is read once more, and refused, when it is opened as a whole
        return
    files.checked_column(names, data.get("target"), "target", path)
    if data.get("split") is not None:
        files.checked_column(names, data["split"], "split", path)
    for option in ("drop", "categorical"):
        files.check_columns(names, data.get(option) or (), option)
