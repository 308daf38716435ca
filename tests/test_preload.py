import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook

from studybook import preload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries elsewhere do not survive forks")
ABOUT = """
import os, sys
import json
loaded = sorted({"torch", "seaborn", "pandas", "myst_nb"} & set(sys.modules))
print(json.dumps({"loaded": loaded, "parent": os.getppid(), "group": os.getpgid(0) == os.getpid(), "cwd": os.getcwd(),
                  "said": os.environ.get("STUDYBOOK_SAID"), "main": __name__, "argv": sys.argv[:1]}))
"""


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    """Runs against libraries loaded in the environment of this test, whatever earlier tests have started."""
    preload.start()
    if preload._lasting(os.environ) != preload._started:  # an earlier test of this process set something of its own
        monkeypatch.setattr(preload, "_started", preload._lasting(os.environ))


def ran(*sources, folder=None, **options):
    """What each cell printed."""
    page = new_notebook(cells=[new_code_cell(source) for source in sources])
    NotebookClient(page, resources={"metadata": {"path": str(folder or os.getcwd())}}, **options).execute()
    return ["".join(o.get("text", "") for o in cell.outputs) for cell in page.cells]


def test_a_kernel_is_a_fork_of_a_process_with_the_libraries(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDYBOOK_SAID", "of this kernel alone")
    (said,) = ran(ABOUT, folder=tmp_path)
    about = json.loads(said)
    assert about["loaded"] == ["myst_nb", "pandas", "seaborn", "torch"]
    assert about["parent"] in preload.servers()
    assert psutil.Process(about["parent"]).ppid() == os.getpid()
    assert about["group"]
    assert about["cwd"] == str(tmp_path)
    assert about["said"] == "of this kernel alone"
    assert about["main"] == "__main__"
    assert about["argv"] == ["ipykernel_launcher"]


def test_in_another_environment_a_kernel_starts_as_it_always_does(monkeypatch):
    threads = "1" if os.environ.get("OMP_NUM_THREADS") != "1" else "2"
    monkeypatch.setenv("OMP_NUM_THREADS", threads)  # read when torch loads
    ask = "import os, torch; print(os.environ['OMP_NUM_THREADS'], torch.get_num_threads())"
    plain = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    first, second = ran(ABOUT, ask)
    assert json.loads(first)["loaded"] == []
    assert json.loads(first)["parent"] == os.getpid()
    assert second == plain.stdout  # what torch makes of it is the machine's affair
    assert second.split()[0] == threads


def test_kernels_do_not_see_each_other():
    mark = "import torch; print(hasattr(torch, 'mark')); torch.mark = 1"
    assert ran(mark, mark) == ["False\n", "True\n"]
    assert ran(mark) == ["False\n"]


def test_a_figure_is_the_one_that_a_fresh_kernel_draws():
    draw = """
import matplotlib.pyplot as plt, hashlib, io
from studybook import plots
plots.style()
fig, ax = plt.subplots()
ax.plot([1, 3, 2])
fig.savefig(out := io.BytesIO(), format="png")
print(plt.get_backend(), hashlib.sha256(out.getvalue()).hexdigest())
plt.close(fig)
"""
    plain = subprocess.run(
        [sys.executable, "-c", draw], capture_output=True, text=True, check=True,
        env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    )  # fmt: skip
    (said,) = ran(draw)
    assert said.split()[0].endswith("inline")
    assert said.split()[1] == plain.stdout.split()[1]


def test_a_kernel_that_dies_is_noticed():
    with pytest.raises(DeadKernelError):
        ran("import os; os._exit(3)")


def test_a_cell_that_takes_too_long_is_interrupted_and_its_kernel_ended():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(CellTimeoutError):
        ran("print(1)", "import time\nwhile True: time.sleep(0.1)", timeout=1)
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not {pid for pid in left if psutil.Process(pid).ppid() in preload.servers()}


def test_a_kernel_ends_with_the_process_that_wanted_it(tmp_path):
    code = f"""
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from studybook import preload
cell = "import os, time; open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid())); time.sleep(600)"
if __name__ == "__main__":
    preload.start()
    NotebookClient(new_notebook(cells=[new_code_cell(cell)])).execute()
"""
    (tmp_path / "one.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "one.py")])
    assert until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    kernel = psutil.Process(int((tmp_path / "pid").read_text()))
    server = kernel.parent()
    assert server.ppid() == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert until(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    assert until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


def until(reached, seconds=60):
    """Whether something comes true within that time."""
    for _ in range(10 * seconds):
        if reached():
            return True
        time.sleep(0.1)
    return False
