"""Choosing MuJoCo's OpenGL backend before MuJoCo is imported.

MuJoCo reads ``MUJOCO_GL`` once, while it is imported. Unset, on a Linux machine without a
display, it picks GLFW and fails much later, with an error that names neither cause nor cure. So
`choose_backend` runs first (``envs/_mujoco.py`` calls it above its ``import mujoco``): it draws one
tiny picture per candidate **in a child process**, because a broken driver may abort the process
instead of raising.

The answer is left in ``MUJOCO_GL``, which child processes inherit: one probe per program, however
many vector-environment workers it starts. ``MUJOCO_GL=disable`` skips rendering altogether, for
``cameras=()`` on a machine without OpenGL.

``python -m envs.rendering`` prints the backend, or the error and exits with code 1.
"""

from __future__ import annotations

import os
import subprocess
import sys

CANDIDATES = ("egl", "osmesa")
APT_INSTALL = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"
NATIVE = "native"

_PROBE_TIMEOUT_S = 60.0
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 2'/><geom size='1' rgba='1 1 1 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data)
image = renderer.render()
assert image.max() > 0, "the picture is black"
print("rendered", flush=True)
"""


class RenderingUnavailableError(RuntimeError):
    """No OpenGL backend draws a picture on this machine; the message says how to get one."""


def choose_backend() -> str:
    """Set ``MUJOCO_GL`` to a backend that works, and name it.

    In order: a value the user has set is kept; macOS, Windows and a Linux machine with a display
    keep MuJoCo's own choice; otherwise the first of `CANDIDATES` that draws a picture is taken.

    Returns:
        The value of ``MUJOCO_GL``, or `NATIVE` where MuJoCo chooses for itself.

    Raises:
        RenderingUnavailableError: no candidate works; the message names the packages to install.
        RuntimeError: a choice is needed, but MuJoCo has been imported already.
    """
    if chosen := os.environ.get("MUJOCO_GL"):
        return chosen
    has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if not sys.platform.startswith("linux") or has_display:
        return NATIVE
    if "mujoco" in sys.modules:
        raise RuntimeError(
            "mujoco was imported before a rendering backend was chosen, and it reads MUJOCO_GL "
            "only once. Import envs first, or set MUJOCO_GL=egl before starting Python."
        )

    reasons = []
    for backend in CANDIDATES:
        reason = _why_not(backend)
        if reason is None:
            os.environ["MUJOCO_GL"] = backend
            return backend
        reasons.append(f"  {backend}: {reason}")
    raise RenderingUnavailableError(
        "MuJoCo cannot draw on this machine. There is no display, and of the off-screen "
        "backends none works:\n" + "\n".join(reasons) + "\n"
        f"On Debian and Ubuntu this installs what is missing:\n  {APT_INSTALL}\n"
        "(MUJOCO_GL=disable does without pictures, for environments made with cameras=().)"
    )


def _why_not(backend: str) -> str | None:
    """Draw a picture with `backend` in a child process; None if that worked, else the reason."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=os.environ | {"MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no picture within {_PROBE_TIMEOUT_S:g} s"
    if result.returncode == 0 and "rendered" in result.stdout:
        return None
    # The last line carries the exception; "Exception ignored in" lines after it carry nothing.
    errors = [line for line in result.stderr.splitlines() if "Error" in line]
    return errors[-1].strip() if errors else f"the process ended with code {result.returncode}"


def main() -> int:
    """Print the backend and return 0, or print the error and return 1."""
    try:
        print(choose_backend())
    except RenderingUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
