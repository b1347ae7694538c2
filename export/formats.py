"""The table of export formats; names and files are those of the contract."""

from export.format import Format
from export.onnx_formats import (
    FIRST_INT8_OPSET,
    FIRST_OPSET,
    convert_onnx,
    convert_onnx_int8,
    load_onnxruntime,
    load_reference,
    stamp_onnx,
)
from export.torch_formats import (
    convert_pt2,
    convert_torchscript,
    load_pt2,
    load_torchscript,
    stamp_archive,
)

ONNX_ENGINES = {"onnxruntime": load_onnxruntime, "onnx.reference": load_reference}

FORMATS = {
    "onnx": Format(convert=convert_onnx, stamp=stamp_onnx, engines=ONNX_ENGINES, first_opset=FIRST_OPSET),
    "onnx-int8": Format(
        convert=convert_onnx_int8,
        stamp=stamp_onnx,
        engines=ONNX_ENGINES,
        quantized=True,
        first_opset=FIRST_INT8_OPSET,
    ),
    "torchscript": Format(
        convert=convert_torchscript, stamp=stamp_archive, engines={"torch.jit": load_torchscript}
    ),
    "pt2": Format(convert=convert_pt2, stamp=stamp_archive, engines={"torch.export": load_pt2}),
}
