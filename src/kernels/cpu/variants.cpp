// Which way products take on a CPU: the shape decides, nothing can be forced.
#include "../variants.hpp"

#include "../conv_backward_data.hpp"
#include "../conv_backward_filter.hpp"
#include "../conv_forward.hpp"
#include "../gemm.hpp"
#include "direct.hpp"
#include "winograd.hpp"
#include "work.hpp"

namespace convnet {
namespace {

std::string conv(Precision precision, bool winograd, bool direct) {
  cpu::fp32_only(precision);
  return winograd ? "Winograd" : direct ? "direct" : "im2col and BLAS";
}

std::string linear(Precision precision, bool direct) {
  cpu::fp32_only(precision);
  return direct ? "direct" : "BLAS";
}

}  // namespace

std::string conv_forward_variant(const ConvShape& shape, Precision precision) {
  return conv(precision, cpu::takes_winograd(shape),
              cpu::takes_direct(shape) || cpu::takes_flat(shape));
}
std::string conv_backward_data_variant(const ConvShape& shape, Precision precision) {
  return conv(precision, cpu::takes_winograd(cpu::turned(shape)), cpu::takes_direct_data(shape));
}
std::string conv_backward_filter_variant(const ConvShape& shape, Precision precision) {
  return conv(precision, cpu::takes_winograd_gradient(shape), cpu::takes_direct_gradient(shape));
}
std::string linear_forward_variant(const LinearShape& shape, Precision precision) {
  return linear(precision, cpu::takes_direct_features(shape));
}
std::string linear_backward_data_variant(const LinearShape& shape, Precision precision) {
  return linear(precision, cpu::takes_direct_inputs(shape));
}
std::string linear_backward_filter_variant(const LinearShape&, Precision precision) {
  return linear(precision, false);
}

std::vector<VariantRow> conv_forward_variants() { return {}; }
std::vector<VariantRow> conv_backward_data_variants() { return {}; }
std::vector<VariantRow> conv_backward_filter_variants() { return {}; }
std::vector<VariantRow> linear_variants() { return {}; }

}  // namespace convnet
