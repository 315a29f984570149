"""Each picture, from what it shows."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import deploy.pictures
from deploy.demo.console import ROOT, DemoFailed, console, relative
from deploy.demo.processes import leave_on_sigterm
from deploy.pictures.dashboard import draw_dashboard

FOLDER = ROOT / "docs" / "pictures"
LARGEST_KIB = 150
NAMES = (
    "reward",
    "dashboard",
    "best-of-n",
    "report",
    "playground-reward",
    "playground-gateway",
)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Make what was asked for; any failure is one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="make pictures", description=deploy.pictures.__doc__)
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--best-of-n", type=Path, default=ROOT / "runs" / "best-of-n")
    parser.add_argument("--report", type=Path, default=ROOT / "runs/comparison-small/report.html")
    parser.add_argument("--seconds", type=int, default=120, help="of load on the reward server")
    parser.add_argument("--only", choices=NAMES)
    args = parser.parse_args()
    leave_on_sigterm()
    makers = {
        "reward": lambda to: shutil.copyfile(needed(args.demo / "ppo-0/plots/reward.png"), to),
        "dashboard": lambda to: draw_dashboard(
            needed(args.demo / "reward-model"), to, args.seconds
        ),
        "best-of-n": lambda to: shutil.copyfile(needed(args.best_of_n / "best-of-n.png"), to),
        "report": lambda to: take_screenshot(needed(args.report), to),
        "playground-reward": lambda to: draw_page("reward", to),
        "playground-gateway": lambda to: draw_page("gateway", to),
    }
    try:
        for name in [args.only] if args.only else NAMES:
            path = FOLDER / f"{name}.png"
            makers[name](path)
            check_size(path)
    except DemoFailed as error:
        console.print(f"[red]pictures:[/red] {error}", highlight=False)
        sys.exit(1)


def needed(path: Path) -> Path:
    """A path that is there.

    Raises:
        DemoFailed: it is not.
    """
    if not path.exists():
        raise DemoFailed(
            f"{relative(path)} is not there: run make demo, comparison or best-of-n first"
        )
    return path


def draw_page(server: str, to: Path) -> None:
    """A server's playground, as the tests use it.

    Raises:
        DemoFailed: there is no Chromium.
    """
    if shutil.which("chromium") is None:
        raise DemoFailed("chromium is not here")
    from tests.playground.pictures import draw_playground

    draw_playground(server, to)


def take_screenshot(page: Path, to: Path) -> None:
    """The top of a page, as a headless Chromium shows it.

    Raises:
        DemoFailed: there is no Chromium, or it made no picture.
    """
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        raise DemoFailed(f"none of {', '.join(CHROMIUM)} is here")
    with tempfile.TemporaryDirectory() as profile:
        command = [program, "--headless", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--hide-scrollbars", "--window-size=1100,830", f"--screenshot={to}"]
        if os.geteuid() == 0:  # Chromium's sandbox refuses root
            command.append("--no-sandbox")
        done = subprocess.run([*command, page.resolve().as_uri()], capture_output=True, check=False)
    if done.returncode != 0 or not to.exists():
        raise DemoFailed(f"{program} made no picture: {done.stderr.decode()[-300:]}")


def check_size(path: Path) -> None:
    """Keep the repository small.

    Raises:
        DemoFailed: the picture is too large.
    """
    size = path.stat().st_size / 1024
    if size > LARGEST_KIB:
        raise DemoFailed(f"{relative(path)} has {size:.0f} KiB, and {LARGEST_KIB} are allowed")
    console.print(f"{relative(path)}: {size:.0f} KiB", highlight=False)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
