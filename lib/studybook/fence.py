"""Runs first in the kernel of a submission: limits on memory, file size and output, and no way out of its folder.

Python's audit events make it, so it holds against Python code; against native code it does not, and it is no sandbox.
"""


def raise_fence() -> None:
    """Limits this process for good, by the terms in STUDYBOOK_FENCE: its own folder, the course's folder, memory."""
    import json
    import os
    import resource
    import sys
    import tempfile
    from threading import get_ident

    import ipykernel.iostream
    import IPython
    import numpy  # noqa: F401, loads its libraries before the fence stands

    terms = json.loads(os.environ.pop("STUDYBOOK_FENCE"))
    resource.setrlimit(resource.RLIMIT_AS, (terms["memory"], terms["memory"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, 2**26))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own, course = (os.path.realpath(terms[name]) + os.sep for name in ("own", "course"))
    scratch = os.path.realpath(tempfile.gettempdir()) + os.sep
    real, fspath, join, fsdecode = os.path.realpath, os.fspath, os.path.join, os.fsdecode
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    changes = {
        "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1,
        "os.setxattr": 1, "os.removexattr": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2,
    }  # fmt: skip
    refused = {
        "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "os.killpg",
        "subprocess.Popen", "socket.connect", "socket.bind", "socket.sendto", "ctypes.dlopen",
        "resource.setrlimit", "pty.spawn",
    }  # fmt: skip
    looking = set()  # threads whose own look at a path the hook must not judge

    def place(path):
        return real(join(os.getcwd(), fsdecode(fspath(path))))

    def guard(event, args):
        if get_ident() in looking or (event != "open" and event not in changes and event not in refused):
            return
        if event in refused:
            raise PermissionError(f"a submission may not do this while it is graded: {event}")
        looking.add(get_ident())
        try:
            if event == "open":
                paths = args[:1] if not isinstance(args[0], int) else ()
                mode, flags = args[1] or "", args[2] or 0
                changing = any(letter in mode for letter in "wax+") or bool(flags & writing)
            else:
                paths, changing = args[: changes[event]], True
            for path in paths:
                if path is None or isinstance(path, int):
                    continue
                full = place(path)
                inside = full.startswith(own) or full.startswith(scratch)
                if changing and not inside and full != os.devnull:
                    raise PermissionError(f"a submission may only write in its own folder, not {path!s}")
                if not changing and full.startswith(course) and not full.startswith(own):
                    raise PermissionError(f"a submission may only read its own files of the course, not {path!s}")
                if full.startswith(own) and full.endswith(".ipynb"):
                    raise PermissionError(f"a submission may not open a notebook while it is graded: {path!s}")
        finally:
            looking.discard(get_ident())

    said = [0]
    write = ipykernel.iostream.OutStream.write

    def counted(self, text):
        said[0] += len(text)
        if said[0] > 1_000_000:
            raise RuntimeError("a cell may print a million characters, not more")
        return write(self, text)

    def forget(*_):
        said[0] = 0

    ipykernel.iostream.OutStream.write = counted
    IPython.get_ipython().events.register("pre_run_cell", forget)
    sys.addaudithook(guard)


if __name__ == "__main__":  # run by the kernel that grades, imported by nobody else
    raise_fence()
    del raise_fence
