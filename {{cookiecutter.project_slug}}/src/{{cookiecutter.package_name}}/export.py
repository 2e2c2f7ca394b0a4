"""Export a checkpoint as a verified bundle: `artifacts/<name>/<version>/`.

python -m <package> export
python -m <package> export ckpt_path=logs/train/runs/<time>/checkpoints/best.ckpt formats=[onnx]
python -m <package> export formats=[onnx,onnx_int8,onnx_fp16,torchscript,torch_export,safetensors]
python -m <package> export export.name=digits export.max_batch_size=256
"""

from pathlib import Path

if not __package__:
    raise SystemExit(f"error: start the module, not its file: python -m {Path(__file__).parent.name} export")

from .engine import commands


@commands.command("export", needs=("paths", "export"))
def main(config: commands.Config) -> None:
    """Writes each format, and publishes the bundle once every file agrees with the trained model."""
    commands.export_bundle(config)


if __name__ == "__main__":
    main()
