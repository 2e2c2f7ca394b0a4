"""An estimate of how ddp and dp scale on machines that are not here, from a step that was measured on one GPU.

python benchmarks/scaling.py --step-ms 97 --gradient-mb 102 --machine-gbyte 25 --network-gbit 400
python benchmarks/scaling.py --published     the same formula beside what others have published

Every GPU keeps its own batch (weak scaling), so efficiency is the step on one GPU over the step on n. Needs matplotlib.

ddp, as Li et al. (PyTorch Distributed, VLDB 2020, arXiv:2006.15704) describe it: gradients become ready through the
backward pass, in buckets (the first of 1 MB); each bucket is sent once it is ready and the one before it was sent. A
ring all-reduce of b bytes takes 2 (n - 1) latency + 2 (n - 1) / n * b / bandwidth (Patarasuk and Yuan, 2009), over the
slowest link of the ring. A step lasts until the backward pass and the last bucket are through.

dp: one process sends (n - 1) parts of the batch and (n - 1) copies of the weights from the first GPU, and adds up
(n - 1) gradients there; nothing overlaps with computing. Its threads share one interpreter, which is left out.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure
from tables import print_table, say

NUMBERS = [2**power for power in range(1, 11)]
FIRST_BUCKET = 1e6


@dataclass(frozen=True)
class Setting:
    """Seconds, bytes, and bytes a second in one direction."""

    step: float
    gradient: float
    backward_share: float = 2 / 3  # twice as many operations as the forward pass
    batch: float = 0.0  # input of one GPU
    bucket: float = 25e6
    per_machine: int = 8
    within: float = 25e9
    between: float = 50e9
    latency_within: float = 5e-6
    latency_between: float = 10e-6

    def link(self, n: int) -> tuple[float, float]:
        """Latency and bandwidth of the slowest link that n GPUs need."""
        if n <= self.per_machine:
            return self.latency_within, self.within
        return self.latency_between, min(self.within, self.between)

    def all_reduce(self, num_bytes: float, n: int) -> float:
        latency, bandwidth = self.link(n)
        return 2 * (n - 1) * latency + 2 * (n - 1) / n * num_bytes / bandwidth

    def ddp_step(self, n: int) -> float:
        backward = self.step * self.backward_share
        ready = sent = 0.0
        while ready < self.gradient:
            bucket = min(self.bucket if ready else FIRST_BUCKET, self.gradient - ready)
            ready += bucket
            start = max(sent, self.step - backward + backward * ready / self.gradient)
            sent = start + self.all_reduce(bucket, n)
        return max(self.step, sent)

    def dp_step(self, n: int) -> float:
        latency, bandwidth = self.link(n)
        return self.step + (n - 1) * (3 * latency + (self.batch + 2 * self.gradient) / bandwidth)

    def efficiency(self, n: int) -> dict[str, float]:
        return {"ddp": self.step / self.ddp_step(n), "dp": self.step / self.dp_step(n)}


DGX_V100 = Setting(step=0.0, gradient=0.0, within=25e9, between=50e9)
PASCAL_25GBE = Setting(step=0.0, gradient=0.0, per_machine=4, within=12e9, between=25e9 / 8)
# Fixed from the sources before the first comparison; latencies are this file's defaults, and in no source.
V100 = "pytorch/pytorch, benchmarks/distributed/ddp/README.md: DGX-1 V100, NVLink of 25 GB/s, 4 x 100 Gb InfiniBand"
GOYAL = (
    "Goyal et al. 2017 (arXiv:1706.02677): P100, backward 120 ms (forward taken as half of it), "
    "NVLink of 20 GB/s, 50 Gbit Ethernet"
)
HOROVOD = (
    "Sergeev and Del Balso 2018 (arXiv:1802.05799): 128 servers of 4 Pascal GPUs on PCIe, 25GbE; "
    "step from TensorFlow's benchmarks on one P100, batch 64 (142 and 154 images a second)"
)
# name, setting, GPUs, beside so many GPUs, published efficiency, source
PUBLISHED = [
    ("ResNet-50", replace(DGX_V100, step=0.097, gradient=102e6), 8, 1, 0.097 / 0.104, V100),
    ("ResNet-50", replace(DGX_V100, step=0.097, gradient=102e6), 16, 1, 0.097 / 0.104, V100),
    ("ResNet-101", replace(DGX_V100, step=0.162, gradient=178e6), 16, 1, 0.162 / 0.179, V100),
    ("ResNet-50", Setting(step=0.18, gradient=100e6, within=20e9, between=50e9 / 8), 256, 8, 0.90, GOYAL),
    ("Inception V3", replace(PASCAL_25GBE, step=64 / 142, gradient=95e6), 512, 1, 0.90, HOROVOD),
    ("VGG-16", replace(PASCAL_25GBE, step=64 / 154, gradient=553e6), 512, 1, 0.68, HOROVOD),
]


def comparison() -> list[dict[str, object]]:
    rows = []
    for name, setting, n, beside, published, source in PUBLISHED:
        estimate = setting.ddp_step(beside) / setting.ddp_step(n)
        rows.append(
            {
                "network": name,
                "gpus": n,
                "beside": beside,
                "estimate": estimate,
                "published": published,
                "source": source,
            }
        )
    return rows


def published_table() -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table."""
    head = ["network", "GPUs", "efficiency of ddp, estimated", "published", "source"]
    rows = []
    for row in comparison():
        beside = f" beside {row['beside']}" if row["beside"] != 1 else ""
        figures = [f"{row[name]:.2f}" for name in ("estimate", "published")]
        rows.append([str(row["network"]), f"{row['gpus']}{beside}", *figures, str(row["source"])])
    return head, rows


def plot(setting: Setting, rows: list[dict[str, object]], picture: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.add_subplot(1, 2, 1)
    for name, colour in (("ddp", "#0072B2"), ("dp", "#D55E00")):
        axes.plot(NUMBERS, [setting.efficiency(n)[name] for n in NUMBERS], marker="o", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(NUMBERS, [str(n) for n in NUMBERS])
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("GPUs")
    axes.set_ylabel("efficiency (1: as many times as fast as GPUs)")
    axes.set_title(
        f"estimate: a step of {setting.step * 1e3:g} ms, {setting.gradient / 1e6:g} MB of gradients", fontsize=10
    )
    axes.legend()
    axes.grid(alpha=0.3)
    axes = figure.add_subplot(1, 2, 2)
    names = [f"{row['network']}, {row['gpus']} GPUs" for row in rows]
    places = range(len(rows))
    axes.barh(
        [place - 0.2 for place in places], [row["published"] for row in rows], 0.4, color="#999999", label="published"
    )
    axes.barh(
        [place + 0.2 for place in places], [row["estimate"] for row in rows], 0.4, color="#0072B2", label="estimate"
    )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05)
    axes.set_xlabel("efficiency of ddp")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    figure.savefig(picture, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true", help="print the comparison with published figures alone")
    parser.add_argument("--step-ms", type=float, help="of one GPU with its batch")
    parser.add_argument("--gradient-mb", type=float, help="4 bytes a weight in float32")
    parser.add_argument("--batch-mb", type=float, default=0.0, help="input of one GPU, which dp sends")
    parser.add_argument("--per-machine", type=int, default=8, help="GPUs of a machine")
    parser.add_argument("--machine-gbyte", type=float, default=25.0, help="GB/s between two GPUs of a machine")
    parser.add_argument("--network-gbit", type=float, default=100.0, help="Gbit/s between machines")
    parser.add_argument("--latency-us", type=float, default=10.0, help="of a message between machines")
    parser.add_argument(
        "--out", type=Path, default=Path("build/scaling"), help="folder for scaling.json and scaling.png"
    )
    options = parser.parse_args()
    if options.published:
        print_table(*published_table())
        return
    if None in (options.step_ms, options.gradient_mb):
        parser.error("--step-ms and --gradient-mb are needed, or --published.")
    if (
        min(options.step_ms, options.gradient_mb, options.machine_gbyte, options.network_gbit) <= 0
        or options.per_machine < 1
    ):
        parser.error("a step, a gradient, a bandwidth and the GPUs of a machine must be more than 0.")
    setting = Setting(
        step=options.step_ms / 1e3,
        gradient=options.gradient_mb * 1e6,
        batch=options.batch_mb * 1e6,
        per_machine=options.per_machine,
        within=options.machine_gbyte * 1e9,
        between=options.network_gbit / 8 * 1e9,
        latency_between=options.latency_us / 1e6,
    )
    rows = comparison()
    say("An estimate, not a measurement: efficiency by the number of GPUs.")
    print_table(
        ["GPUs", "ddp", "dp"], [[n, *(f"{value:.2f}" for value in setting.efficiency(n).values())] for n in NUMBERS]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    efficiencies = {n: setting.efficiency(n) for n in NUMBERS}
    content = {"setting": asdict(setting), "efficiency": efficiencies, "published": rows}
    (options.out / "scaling.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    plot(setting, rows, options.out / "scaling.png")
    say(f"{options.out / 'scaling.json'} and scaling.png have the figures, and those that were published.")


if __name__ == "__main__":
    main()
