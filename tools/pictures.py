"""Makes the pictures of the READMEs from real runs: `make pictures`.

A project for images and one for tables are generated and set up in `build/pictures/`, trained, exported and served;
what a person sees on the way is written to `docs/pictures/` of the template and of the project. It needs Chromium
(`make tools`) and takes some minutes. No other work should run beside it: the terminals show how long something took.
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPLATE = Path(__file__).parents[1]
PACKAGES = ("pyte==0.8.2", "selenium==4.51.0")
OF_TEMPLATE = TEMPLATE / "docs/pictures"
OF_PROJECT = TEMPLATE / "{{cookiecutter.project_slug}}/docs/pictures"
COLUMNS, LINES = 118, 200  # of the terminal
MOST_BYTES = 120_000  # of a picture
STYLE = """<meta charset="utf-8"><style>
body { font: 16px/1.5 system-ui, sans-serif; width: 52rem; margin: 2rem; color: #1f2328; background: #fff; }
h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; } table { border-collapse: collapse; }
td, th { border: 1px solid #d1d9e0; padding: .35em .8em; } code { background: #eff1f3; padding: .1em .3em; }
img { max-width: 26rem; } </style>
"""


def main() -> None:
    sys.path.append(str(Path(__file__).parent))
    from sessions import BUILD, bake, pip_install, run  # here: a project's environment has not all that it needs

    for kind in ("images", "tables"):
        project = bake(BUILD / "pictures" / kind, {"data_kind": kind})
        run("make", f"PYTHON={sys.executable}", "setup", cwd=project)
        pip_install(project / ".venv", *PACKAGES)
        # The terminal and the browser are driven in the project's environment, which has numpy and Pillow too.
        done = subprocess.run([project / ".venv/bin/python", __file__, kind], cwd=project, check=False)
        if done.returncode:
            sys.exit(done.returncode)
    print("next: look at the pictures in docs/pictures and in those of the project, then commit them")


def take(kind: str) -> None:
    """Runs the commands in the project that is the working directory, and writes the pictures of this kind."""
    for folder in ("logs", "artifacts"):
        shutil.rmtree(folder, ignore_errors=True)
    OF_TEMPLATE.mkdir(exist_ok=True)
    OF_PROJECT.mkdir(exist_ok=True)
    train = terminal("train", OF_PROJECT / f"{kind}-train.svg")
    print(train)
    (run_dir,) = Path("logs/train/runs").iterdir()
    save(run_dir / "curves.png", OF_PROJECT / f"{kind}-curves.png", width=900)
    print(terminal("export", OF_TEMPLATE / "export.svg" if kind == "images" else None))
    page = OF_PROJECT / f"{kind}-page.png"
    with browser() as driver, server() as address:
        driver.get(address)
        ask(driver, kind)
        capture(driver, page)
        if kind == "images":
            show_card(driver, next(Path("artifacts").glob("*/1")), OF_TEMPLATE / "card.png")
    if kind == "images":
        for name in ("train.svg", "curves.png", "page.png"):
            shutil.copy(OF_PROJECT / f"{kind}-{name}", OF_TEMPLATE / name)
        print(terminal("evaluate", OF_TEMPLATE / "evaluate.svg"))
        (evaluation,) = Path("logs/evaluate/runs").iterdir()
        save(evaluation / "confusion_matrix.png", OF_TEMPLATE / "confusion_matrix.png", width=700)
        print(terminal("search num_trials=20 trainer.max_epochs=4", None))
        save(next(Path("logs/search").rglob("search.png")), OF_TEMPLATE / "search.png", width=1000)


def terminal(command: str, picture: Path | None) -> str:
    """Runs a command of the project in a terminal, and draws what stands there at its end; returns it as text."""
    import fcntl
    import pty
    import struct
    import termios

    import pyte

    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    words = ["python", "-m", "digit_classifier", *command.split()]
    pid, terminal = pty.fork()
    if pid == 0:
        venv = Path(".venv").resolve()  # activated
        given = {"VIRTUAL_ENV": str(venv), "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        environment = {**os.environ, **given, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.execvpe(words[0], words, environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    while True:
        try:
            if not (printed := os.read(terminal, 65536)):
                break
        except OSError:  # Linux reports the end of a terminal so
            break
        stream.feed(printed)
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit("\n".join(screen.display).rstrip() + f"\nerror: '{command}' failed.")
    if picture is not None:
        draw(screen, " ".join(words), picture)
    return "\n".join(line.rstrip() for line in screen.display).rstrip()


def draw(screen: "pyte.Screen", title: str, picture: Path) -> None:  # noqa: F821
    """Writes the screen as an SVG that loads nothing from other servers."""
    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console
    from rich.style import Style
    from rich.terminal_theme import TerminalTheme
    from rich.text import Text

    last = max(number for number, line in enumerate(screen.display) if line.strip())
    text = Text(no_wrap=True)
    for number in range(last + 1):
        cells = [screen.buffer[number][column] for column in range(len(screen.display[number].rstrip()))]
        for (colour, bold), alike in itertools.groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
            colour = re.sub("^([0-9a-f]{6})$", r"#\1", {"brown": "yellow"}.get(colour, colour))
            style = Style(color=None if colour == "default" else colour, bold=bold)
            text.append("".join(cell.data for cell in alike), style)
        text.append("\n")
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(text, end="", highlight=False)
    plain = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    plain = plain.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    theme = TerminalTheme((255, 255, 255), (31, 35, 40), [(31, 35, 40), (207, 34, 46), (17, 99, 41), (77, 45, 0),
        (9, 105, 218), (130, 80, 223), (27, 124, 131), (110, 119, 129)])  # fmt: skip
    svg = console.export_svg(title=title, theme=theme, code_format=plain, unique_id="terminal")
    svg = "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
    assert "url(http" not in svg
    assert not re.search(r"\{[{%#]", svg), "cookiecutter renders the file"
    write(picture, svg.encode())


@contextmanager
def server() -> Iterator[str]:
    """Serves the newest bundle, and yields its address."""
    command = [".venv/bin/python", "-m", "digit_classifier", "serve", "port=0", "logs=text"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout:
                if found := re.search(r"serving .* at (http://\S+)", line):
                    break
            else:
                sys.exit("error: the server did not start.")
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


@contextmanager
def browser() -> Iterator["webdriver.Chrome"]:  # noqa: F821
    from selenium import webdriver

    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        sys.exit("error: Chromium is not installed: run 'make tools'.")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


def ask(driver: "webdriver.Chrome", kind: str) -> None:  # noqa: F821
    """Sends a sample of the test split as a person would, and waits for the answer."""
    import numpy as np
    from PIL import Image
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    if kind == "images":
        golden = next(Path("artifacts").glob("*/1/golden.npz"))
        picture = Path("digit.png").resolve()
        sample = np.load(golden)["x"][0, 0]
        Image.fromarray(sample).resize((160, 160), Image.Resampling.NEAREST).save(picture)
        driver.find_element(By.ID, "file").send_keys(str(picture))
    else:
        time.sleep(1)  # the row of the example is filled in
        driver.find_element(By.CSS_SELECTOR, "#row button").click()
    WebDriverWait(driver, 20).until(
        lambda driver: any(driver.find_element(By.ID, place).text for place in ("answer", "prediction"))
    )


def show_card(driver: "webdriver.Chrome", bundle: Path, picture: Path) -> None:  # noqa: F821
    """The model card as a browser shows Markdown."""
    from markdown_it import MarkdownIt

    text = re.sub(r"\A---\n.*?\n---\n", "", (bundle / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    page = bundle.resolve() / "card.html"
    page.write_text(STYLE + MarkdownIt().enable("table").render(text), encoding="utf-8")
    driver.get(page.as_uri())
    capture(driver, picture)
    page.unlink()


def capture(driver: "webdriver.Chrome", picture: Path) -> None:  # noqa: F821
    driver.set_window_size(940, 500)
    height = driver.execute_script("return document.documentElement.scrollHeight")
    driver.set_window_size(940, min(height, 1700) + 140)
    taken = Path("screen.png")
    driver.save_screenshot(str(taken))
    save(taken, picture)
    taken.unlink()


def save(source: Path, picture: Path, width: int | None = None) -> None:
    """Reduces a picture to 128 colours, cuts the empty margin at its bottom off, and makes it narrower if asked to."""
    import io

    from PIL import Image, ImageChops

    image = Image.open(source).convert("RGB")
    if width is not None and image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    empty = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    _, _, _, bottom = ImageChops.difference(image, empty).getbbox()
    image = image.crop((0, 0, image.width, min(image.height, bottom + 24)))
    buffer = io.BytesIO()
    image.quantize(128).save(buffer, "PNG", optimize=True)
    write(picture, buffer.getvalue())


def write(picture: Path, contents: bytes) -> None:
    if len(contents) > MOST_BYTES:
        sys.exit(f"error: {picture} would have {len(contents):,} bytes, more than {MOST_BYTES:,}.")
    picture.write_bytes(contents)
    print(f"{picture.relative_to(TEMPLATE)}  {len(contents) / 1000:,.0f} kB", flush=True)


if __name__ == "__main__":
    take(sys.argv[1]) if len(sys.argv) > 1 else main()
