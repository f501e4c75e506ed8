"""``edgead build``: the engine of a bundle for one GPU; ``edgead build-plugin``: fused kernels for such engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import BundleArgument
from edgead.cli.device import PANEL
from edgead.cli.terminal.completion import complete_precision, complete_target

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.export.engines.build_report import BuildReport, EngineRow


@command(
    "build",
    panel=PANEL,
    trusts=True,
    example="edgead build plate.edgead --target tensorrt-rtx --compute-capability 8.6",
)
def build(
    out: Output,
    bundle: BundleArgument,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="P",
            help="Of the bundle; repeat it.",
            show_default="all that are meant for the target",
            autocompletion=complete_precision,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="tensorrt, on and for this GPU; tensorrt-rtx, also for others and without; cpu.",
            autocompletion=complete_target,
        ),
    ] = "tensorrt",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X.Y",
            help="GPU to build for with tensorrt-rtx, or 'portable'; repeat it.",
            show_default="this GPU's, else all",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the engines go.", show_default="EDGEAD_ENGINE_CACHE, or ~/.cache"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Largest batch of the engine.")] = 1,
    workspace_mb: Annotated[
        int | None,
        typer.Option(
            "--workspace-mb",
            min=1,
            metavar="N",
            help="Scratch memory of a layer, MiB.",
            show_default="an eighth of the memory on small boards",
        ),
    ] = None,
    plugin: Annotated[
        Path | None, typer.Option(metavar="LIB", help="Of 'edgead build-plugin': fused scoring kernels (tensorrt).")
    ] = None,
    dla: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Deep-learning accelerator to use (Jetson).")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="A build that takes longer is ended.")
    ] = 1800.0,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build although a fitting engine is there.")] = False,
) -> None:
    """Build device engines into the cache, and read back in which precision their layers compute.

    The target cpu compiles native code for memory banks and Gaussians for this machine's processor instead, unless it
    came with the package; onnxruntime and openvino then use it. Exits with 3, and keeps nothing, where an FP16 or INT8
    graph came out in FP32.
    """
    from edgead.export.engines.building import BuildOptions, build_engines
    from edgead.runtime.backends.engine_cache import CACHE_VARIABLE, EngineCache
    from edgead.runtime.backends.engine_key import PLUGIN_VARIABLE

    options = BuildOptions(
        precisions=precision or (),
        compute_capabilities=compute_capability or (),
        max_batch=batch,
        workspace_mb=workspace_mb,
        plugin=plugin,
        dla=dla,
        timeout_s=timeout,
        rebuild=rebuild,
    )
    with out.progress() as step:
        report = build_engines(
            bundle,
            target=target,
            cache=EngineCache(cache),
            options=options,
            progress=step,
            on_wait=lambda: out.note("another build uses this cache; waiting for it"),
        )
    for row in report.refused:
        out.warn(f"no engine of {row.graph} for compute capability {row.compute_capability}: {row.reason}")
    for variable, value in ((CACHE_VARIABLE, cache), (PLUGIN_VARIABLE, plugin)):
        if value is not None:
            out.note(f"before check, bench and run: export {variable}={value.resolve()}")
    out.finish(report.to_dict(), _engines_table(report))


@command("build-plugin", panel=PANEL, example="edgead build-plugin --compute-capability 8.7 -o libedgead_plugin.so")
def build_plugin(
    out: Output,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="LIB", help="The library to write.")] = Path(
        "libedgead_plugin.so"
    ),
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="X.Y", help="GPU to build for; repeat it.", show_default="this GPU's"),
    ] = None,
    tensorrt_include: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of TensorRT's headers.", show_default="TENSORRT_ROOT/include, or /usr/include"
        ),
    ] = None,
) -> None:
    """Compile the scoring kernels into a plugin for TensorRT 10.3 or newer; needs nvcc. Never run on a GPU so far."""
    from edgead.export.kernels.toolkit import build_plugin as compile_plugin

    built = compile_plugin(output, compute_capabilities=compute_capability or (), tensorrt_include=tensorrt_include)
    capabilities = [f"{number // 10}.{number % 10}" for number in built]
    size = output.stat().st_size
    out.note(f"to use it: edgead build NAME.edgead --plugin {output}")
    out.finish(
        {"schema": "edgead.plugin/1", "plugin": str(output), "compute_capabilities": capabilities, "bytes": size},
        f"{output}: {size / 1e6:.1f} MB, for compute capability {', '.join(capabilities)}; built, not run",
    )


def _engines_table(report: BuildReport) -> Any:
    from edgead.cli._output import table

    rows = [
        [
            row.graph,
            row.stored.key.compute_capability,
            _precisions(row),
            f"{row.stored.size / 1e6:.1f}",
            "in the cache" if row.reused else f"{row.stored.info['build_seconds']:.2f}",
        ]
        for row in report.engines
    ]
    title = f"{report.target} {report.version}, engines in {report.cache}; built, not run"
    headings = ["graph", "compute capability", "layers", "MB", "seconds"]
    return table(title, headings, rows, text_columns=3)


def _precisions(row: EngineRow) -> str:
    from edgead.export.engines.layer_precision import count

    counts = count(layer for layer in row.layers if layer.heavy) or count(row.layers)
    return "; ".join(
        f"{kind}: {', '.join(f'{number} {name}' for name, number in found.items())}" for kind, found in counts.items()
    )
