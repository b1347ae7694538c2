// onnx ARTIFACT: read the test vectors with model.onnx.
#include <onnxruntime_cxx_api.h>

#include <array>

#include "vectors.h"

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: %s ARTIFACT\n", argv[0]), 2;
  const std::string artifact = argv[1];
  Vectors vectors(artifact);

  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "mnist");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);  // the net is small: threads would cost more than they bring
  Ort::Session session(env, (artifact + "/model.onnx").c_str(), options);  // on Windows the path is wide

  const std::array<std::int64_t, 3> shape{vectors.count, 28, 28};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto image = Ort::Value::CreateTensor<std::uint8_t>(memory, vectors.pixels.data(), vectors.pixels.size(),
                                                      shape.data(), shape.size());
  const char* inputs[] = {"image"};
  const char* outputs[] = {"probabilities"};
  auto answers = session.Run(Ort::RunOptions{nullptr}, inputs, &image, 1, outputs, 1);
  return vectors.compare(answers[0].GetTensorData<float>());
}
