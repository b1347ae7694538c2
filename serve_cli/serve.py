"""The command line: `mnist serve`."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from serve_cli.errors import InputError, needs_extra
from serve_cli.http.settings import MIB, MULTIPROCESS, Settings
from serve_cli.model_file import find_model
from serve_cli.process import print_result
from serve_cli.runtime import Predictor
from serve_cli.spec import BUNDLED_MODEL

KEY_VARIABLE = "MNIST_API_KEY"

SIGNS = re.compile(r"[!-~]+")
HOST = re.compile(r"\*|\[[0-9a-fA-F:.]+\]|[\w.-]+")
ORIGIN = re.compile(r"https?://[a-z0-9._:\[\]-]+")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def serve(
    model: Annotated[
        Path,
        typer.Option(
            *("--model", "-m"),
            metavar="M",
            help="An .onnx file, or the directory of an artifact or run.",
            show_default="the model in the package",
        ),
    ] = BUNDLED_MODEL,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 for all of this machine's addresses."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="0: any that is free.")] = 8000,
    workers: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=256, help="Processes that answer; one a core is plenty."),
    ] = 1,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0,
            max=1,
            help="Below this, 0 to 1, an answer is 'not sure'.",
            show_default="the model's own limit",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar=KEY_VARIABLE,
            help="Answer only those who send it, as Authorization: Bearer KEY or X-API-Key.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="A site whose pages may ask, as https://example.org; repeatable."
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name of this server that requests may have in their Host header, * for any; repeatable.",
            show_default="localhost, --host and addresses",
        ),
    ] = None,
    max_body: Annotated[int, typer.Option(metavar="MIB", min=1, max=64, help="Largest request.")] = 16,
    receive_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="Time that a request has to arrive.")
    ] = 10.0,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="Write one JSON line a request on stderr.")
    ] = True,
) -> None:
    """Serve a page to draw on, and pictures over HTTP.

    POST /predict takes a picture and answers as mnist infer --json does; /v2 is the Open Inference
    Protocol, as Triton and KServe speak it; /docs describes both, /metrics is for Prometheus. Ctrl-C or
    SIGTERM stops it within 5 s, after it has answered the requests that it accepted.

    Exit codes: 0 stopped as asked, 1 the system failed, 2 bad usage, no model, or an address that is taken.

    \b
    Examples:
      mnist serve --port 8080
      mnist serve --model artifact --workers 4 --no-access-log
      mnist serve --host 0.0.0.0 --allowed-host digits.example.org --api-key KEY
      curl --data-binary @digit.png http://127.0.0.1:8000/predict
    """
    if workers == 1:
        os.environ.pop(MULTIPROCESS, None)  # of somebody else's: prometheus_client looks at it when imported
    with needs_extra("serve"):
        import python_multipart  # noqa: F401  Starlette asks for it when the first form arrives

        from serve_cli.http.server import listen
        from serve_cli.http.server import serve as serve_here
        from serve_cli.http.supervisor import supervise
    if api_key == "" or os.environ.get(KEY_VARIABLE) == "":  # typer takes an empty variable for none
        raise InputError(f"--api-key, or {KEY_VARIABLE}, is empty: set a key, or take it away")
    if api_key and not SIGNS.fullmatch(api_key):
        raise InputError("--api-key may hold ASCII letters, digits and signs, no spaces: choose another")
    for host_name in allowed_host or ():
        if not HOST.fullmatch(host_name):
            raise InputError(f"--allowed-host {host_name} is not a name: leave out https:// and the port")
    for site in cors or ():
        if not ORIGIN.fullmatch(site):
            raise InputError(f"--cors {site} is no origin: name one as https://example.org, in lower case")
    settings = Settings(
        model=find_model(model),
        host=host.strip("[]"),
        port=port,
        workers=workers,
        floor=min_confidence,
        api_key=api_key,
        cors=tuple(cors or ()),
        allowed_hosts=tuple(allowed_host or ()),
        access_log=access_log,
        max_body=max_body * MIB,
        receive_s=receive_timeout,
    )
    predictor = Predictor(settings.model)
    listener = listen(settings)
    name = "the model in the package" if model == BUNDLED_MODEL else settings.model
    address, found = listener.getsockname()[:2]
    place = f"[{address}]" if ":" in address else address

    def started() -> None:
        print_result(f"Serving {name} on http://{place}:{found}/ (Ctrl-C stops)")

    if workers > 1:
        supervise(settings, listener, started)
    else:
        serve_here(settings, predictor, listener, started)
