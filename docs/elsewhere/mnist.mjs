// Read digits in a browser or in Node. For Node alone, "onnxruntime-node" can take the place of "onnxruntime-web".
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1; // the net is small: threads would cost more than they bring

// model: the address of model.onnx or model.int8.onnx, or the bytes of one, as a Uint8Array.
export const open = (model) => ort.InferenceSession.create(model);

// pixels: Uint8Array of N * 784, 0 is background, 255 is ink. Returns N times { label, probabilities }.
export async function read(session, pixels) {
  const image = new ort.Tensor("uint8", pixels, [pixels.length / 784, 28, 28]);
  const { probabilities } = await session.run({ image });
  return Array.from({ length: image.dims[0] }, (_, n) => {
    const ten = Array.from(probabilities.data.subarray(n * 10, n * 10 + 10));
    return { label: ten.indexOf(Math.max(...ten)), probabilities: ten };
  });
}

// input and output: the bytes of input_0.pb and output_1.pb, which end with the numbers themselves.
export function vectors(input, output) {
  const count = Math.floor(input.length / 784);
  const answers = new Float32Array(output.slice(-40 * count).buffer);
  return { pixels: input.slice(-784 * count), probabilities: Array.from(answers) };
}

export function largestDifference(digits, probabilities) {
  const found = digits.flatMap((digit) => digit.probabilities);
  return Math.max(...found.map((value, n) => Math.abs(value - probabilities[n])));
}
