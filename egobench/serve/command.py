"""What `egobench serve` does; the command line adds only the flags. Gradio is imported by nothing above this."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from egobench.errors import EXIT_OK, EnvironmentProblem, InvalidInput, Mistake
from egobench.serve.answerers import Pool, read_offer, start_offer
from egobench.serve.asking import Desk
from egobench.serve.sources import Sources


def serve(names: Sequence[str], *, runs: Path, results: Path, host: str, port: int, keep: int) -> int:
    """Serve the page until Ctrl-C.

    Raises:
        EnvironmentProblem: Gradio is not installed, or the address is taken.
        InvalidInput: there is no such sweep.
    """
    if importlib.util.find_spec("gradio") is None:
        raise EnvironmentProblem("`egobench serve` needs Gradio: pip install -c constraints.txt -e '.[serve]'")
    sources = Sources.of(names, runs, results)
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    with listening, tempfile.TemporaryDirectory(prefix="egobench-serve-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        uploads = scratch / "uploads"
        uploads.mkdir()
        offering = start_offer(scratch)
        pool = Pool(keep)
        try:
            _settle_gradio(uploads)
            from egobench.serve.server import application, run

            offer = read_offer(offering)
            if offer is None:
                print("egobench: no model can be run here (see above); the dashboard works", file=sys.stderr)
            app = application(Desk(sources, offer, pool, scratch, uploads), host, port)
            _warn(host)
            run(app, listening, lambda: print(_url(host, port), flush=True))
        except KeyboardInterrupt:
            pass  # before it answered
        finally:
            pool.close()
            offering.kill()
            offering.wait()
    return EXIT_OK


def _settle_gradio(uploads: Path) -> None:
    """Tell Gradio, before it is imported, to call nobody and where to keep uploads; it reads nothing else."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except socket.gaierror as error:
        listening.close()
        raise InvalidInput([Mistake("--host", f"'{host}' is no address: {error.strerror}")]) from error
    except OSError as error:
        listening.close()
        raise EnvironmentProblem(f"{host}:{port}: {error.strerror}; choose another with --port") from error
    return listening


def _warn(host: str) -> None:
    if not is_loopback(host):
        print(
            f"egobench: {host} can be reached from other machines, and there is no password: whoever reaches it can "
            "run the models and read the results. `ssh -L` to 127.0.0.1 is safer.",
            file=sys.stderr,
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
