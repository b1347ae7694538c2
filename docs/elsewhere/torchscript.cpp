// torchscript ARTIFACT: read the test vectors with model.torchscript.pt.
#include <torch/script.h>

#include "vectors.h"

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: %s ARTIFACT\n", argv[0]), 2;
  const std::string artifact = argv[1];
  Vectors vectors(artifact);

  c10::InferenceMode no_gradients;
  auto model = torch::jit::load(artifact + "/model.torchscript.pt");
  auto image = torch::from_blob(vectors.pixels.data(), {vectors.count, 28, 28}, torch::kUInt8);
  auto outputs = model.forward({image}).toTuple();  // logits, probabilities
  auto probabilities = outputs->elements()[1].toTensor().contiguous();
  return vectors.compare(probabilities.data_ptr<float>());
}
