// node node.mjs ARTIFACT: read the test vectors of an exported model, and compare with PyTorch's answers.
import { readFile } from "node:fs/promises";
import { largestDifference, open, read, vectors } from "./mnist.mjs";

const bytes = async (name) => new Uint8Array(await readFile(`${process.argv[2]}/${name}`));
const folder = "test_data_set_0";
const expected = vectors(await bytes(`${folder}/input_0.pb`), await bytes(`${folder}/output_1.pb`));

const session = await open(await bytes("model.onnx"));
const digits = await read(session, expected.pixels);
for (const { label, probabilities } of digits) {
  console.log(`${label}:`, ...probabilities.map((value) => value.toFixed(6)));
}
const difference = largestDifference(digits, expected.probabilities);
console.log(`largest difference: ${difference.toExponential(1)}`);
process.exitCode = difference <= 1e-4 ? 0 : 1;
