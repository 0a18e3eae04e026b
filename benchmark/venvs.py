"""The peers' virtual environments, which speed.py and run.py share."""

import fcntl
import subprocess
import sys
from pathlib import Path

VENVS = Path(__file__).resolve().parent / ".venvs"
PINS = {  # virtual environment: what is installed there
    "sb3": [
        *("sb3-soft==0.1.1", "stable-baselines3[extra]==2.9.2", "gymnasium[box2d]==1.4.0", "torch==2.13.0"),
        *("ale-py==0.12.1", "numpy==2.4.6"),
    ],
    "cleanrl": [  # numpy 1.26.4 is for Python up to 3.12
        *("gymnasium==0.29.1", "ale-py==0.9.1", "numpy==1.26.4", "opencv-python-headless==4.11.0.86"),
        *("tyro==1.0.17", "tensorboard==2.21.0", "torch==2.13.0"),
    ],
    "tianshou": [
        *("tianshou==2.0.1", "gymnasium[box2d]==1.4.0", "tensorboard==2.21.0", "torch==2.13.0", "numpy==2.4.6"),
    ],
}


def interpreter(venvs: Path, name: str | None) -> str:
    """The Python of a virtual environment; None: the one that runs this."""
    return str(venvs.resolve() / name / "bin" / "python") if name else sys.executable


def make_venv(venvs: Path, name: str) -> None:
    """Makes a virtual environment if it is not there with these pins and this Python; one process at a time."""
    directory, wanted = venvs.resolve() / name, "\n".join([sys.version, *PINS[name]])
    venvs.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        complete = directory / "complete"
        if complete.exists() and complete.read_text() == wanted:
            return
        print(f"making {directory}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        subprocess.run([directory / "bin" / "pip", "install", "-q", *PINS[name]], check=True)
        complete.write_text(wanted)
