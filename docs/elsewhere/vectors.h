// The test vectors of an exported model, and the comparison with PyTorch's answers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

struct Vectors {
  std::int64_t count;
  std::vector<std::uint8_t> pixels;  // count * 784, 0 is background, 255 is ink
  std::vector<float> probabilities;  // count * 10

  // input_0.pb and output_1.pb end with the numbers themselves.
  explicit Vectors(const std::string& artifact) {
    const auto input = bytes(artifact + "/test_data_set_0/input_0.pb");
    const auto output = bytes(artifact + "/test_data_set_0/output_1.pb");
    count = input.size() / 784;
    pixels.assign(input.end() - 784 * count, input.end());
    probabilities.resize(10 * count);
    std::memcpy(probabilities.data(), output.data() + output.size() - 40 * count, 40 * count);
  }

  // Print the digits; returns the exit code, 0 if all of `found` (count * 10) is PyTorch's answer.
  int compare(const float* found) const {
    float largest = 0;
    int wrong = 0;
    for (std::int64_t n = 0; n < count; ++n) {
      const float* ten = found + 10 * n;
      std::printf("%d:", static_cast<int>(std::max_element(ten, ten + 10) - ten));
      for (int k = 0; k < 10; ++k) {
        std::printf(" %.6f", ten[k]);
        const float difference = std::fabs(ten[k] - probabilities[10 * n + k]);
        largest = std::fmax(largest, difference);
        wrong += !(difference <= 1e-4f);  // so is what is no number
      }
      std::printf("\n");
    }
    std::printf("largest difference: %.1e\n", largest);
    return wrong ? 1 : 0;
  }

 private:
  static std::vector<std::uint8_t> bytes(const std::string& name) {
    std::ifstream file(name, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
};
