// Momentum SGD, and what only devices with bfloat16 need: copies of weights.
#include "../sgd.hpp"

#include "../cast.hpp"
#include "../fold.hpp"
#include "checks.hpp"
#include "level.hpp"
#include "update.hpp"
#include "work.hpp"

namespace convnet {

void sgd(int64_t count,
         float* weight,
         float* velocity,
         const float* gradient,
         bf16* copy,
         int64_t,
         Control* control,
         float rate,
         float decay,
         float momentum,
         Stream) {
  cpu::check_count("sgd", copy ? Precision::bf16 : Precision::fp32, count);
  if (control->stopped) return;
  const cpu::Rates rates(*control, {rate, decay, momentum});
  cpu::in_pieces(count, cpu::kPiece, [&](int64_t first, int64_t last) {
    cpu::vectorised([&]() CONVNET_INLINE {
      if (!cpu::update(last - first, weight + first, velocity + first, gradient + first, rates))
        cpu::spoil(control);
    });
  });
}

void sgd_many(const Updates& updates, Control* control, Stream stream) {
  require(updates.count >= 0 && updates.count <= kMostUpdates, "sgd_many: takes at most ",
          kMostUpdates, " tensors");
  for (int i = 0; i < updates.count; ++i) {
    const Update& u = updates.tensor[i];
    if (u.folded) cpu::fp32_only(Precision::bf16);
    const auto [rate, decay, momentum] = u.factors;
    sgd(u.count, u.weight, u.velocity, u.gradient, static_cast<bf16*>(u.copy), u.columns, control,
        rate, decay, momentum, stream);
  }
}

void cast_weight(int64_t, int64_t, const float*, bf16*, Stream) { cpu::fp32_only(Precision::bf16); }
void fold_weight(const ConvShape&, Precision, const float*, void*, Stream) {
  cpu::fp32_only(Precision::bf16);
}
void unfold_gradient(const ConvShape&, const float*, float*, Stream) {
  cpu::fp32_only(Precision::bf16);
}

}  // namespace convnet
