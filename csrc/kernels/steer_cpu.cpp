#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "share_out.h"
#include "steer.h"
#include "steer_rows.h"

namespace expertsteer {
namespace {

// Calls f with null pointers of a dtype's element and of the type of its arithmetic.
template <typename F>
void dispatch(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    case DType::kFloat64:
      return f(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case DType::kFloat16:
      return f(static_cast<Float16*>(nullptr), static_cast<float*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<BFloat16*>(nullptr), static_cast<float*>(nullptr));
  }
}

// Room for `count` values that a thread keeps, so that repeated calls allocate nothing.
template <typename T, int kUse>
T* scratch(std::int64_t count) {
  thread_local std::vector<T> room;
  if (static_cast<std::int64_t>(room.size()) < count) room.resize(count);
  return room.data();
}

// What one sequence is steered with.
template <typename Element, typename Wide>
class Sequence {
 public:
  explicit Sequence(const Steer& a)
      : a_(a),
        table_(static_cast<const Wide*>(a.table)),
        inverse_norms_(static_cast<const Wide*>(a.inverse_norms)) {}

  // Read the entries of sequence b; those that all sequences share are read once.
  void select(std::int64_t b) {
    const bool moved = a_.rows_stride || a_.strengths_stride || !rows_;
    rows_ = a_.rows + b * a_.rows_stride;
    strengths_ = static_cast<const Wide*>(a_.strengths) + b * a_.strengths_stride;
    if (a_.gates) {
      gate_ = a_.gates[b * a_.gates_stride];
      threshold_ = static_cast<const Wide*>(a_.thresholds)[b * a_.thresholds_stride];
    }
    if (moved) combine();
  }

  bool changes() const { return active_ > 0; }

  void steer(Element* row) const {
    const bool gated = gate_ != 0 && inverse_norms_[gate_] != 0;
    const bool adds = a_.operation == SteerOperation::kAdd;
    if (adds && !gated && a_.element_stride == 1) {
      return add_scaled(row, direction_, scale_, a_.width);
    }
    // Rows of the arithmetic's own type are changed where they lie, others in a copy.
    const bool in_place = std::is_same<Element, Wide>::value && a_.element_stride == 1;
    Wide* wide = in_place ? reinterpret_cast<Wide*>(row) : scratch<Wide, 0>(a_.width);
    if (!in_place) load(row, a_.element_stride, wide, a_.width);
    if (gated && !(dot(wide, at(gate_), a_.width) * inverse_norms_[gate_] > threshold_)) return;
    if (a_.operation == SteerOperation::kAdd) {
      add_scaled(wide, direction_, scale_, a_.width);
    } else if (a_.operation == SteerOperation::kAddKeepNorm) {
      add_keep_norm(wide);
    } else {
      move_along(wide);
    }
    if (!in_place) store(wide, row, a_.element_stride, a_.width);
  }

 private:
  const Wide* at(std::int32_t row) const { return table_ + row * a_.table_stride; }

  bool is_active(std::int64_t s) const {
    if (rows_[s] == 0) return false;
    return a_.operation == SteerOperation::kClamp || strengths_[s] != 0;
  }

  // For the two additions: one direction and scale that stand for all vectors of the sequence.
  void combine() {
    active_ = 0;
    for (std::int64_t s = 0; s < a_.vectors; ++s) {
      if (!is_active(s)) continue;
      ++active_;
      direction_ = at(rows_[s]);
      scale_ = strengths_[s];
    }
    const bool adds =
        a_.operation == SteerOperation::kAdd || a_.operation == SteerOperation::kAddKeepNorm;
    if (!adds || active_ < 2) return;
    Wide* sum = scratch<Wide, 1>(a_.width);
    std::fill(sum, sum + a_.width, Wide(0));
    for (std::int64_t s = 0; s < a_.vectors; ++s) {
      if (is_active(s)) add_scaled(sum, at(rows_[s]), strengths_[s], a_.width);
    }
    direction_ = sum;
    scale_ = 1;
  }

  void add_keep_norm(Wide* row) const {
    const Wide before = std::sqrt(dot(row, row, a_.width));
    add_scaled(row, direction_, scale_, a_.width);
    const Wide after = std::sqrt(dot(row, row, a_.width));
    const bool finite = std::isfinite(before) && std::isfinite(after);
    if (finite && after > 0) multiply(row, before / after, a_.width);
  }

  // Remove or clamp, one vector after the other.
  void move_along(Wide* row) const {
    for (std::int64_t s = 0; s < a_.vectors; ++s) {
      const Wide inverse = is_active(s) ? inverse_norms_[rows_[s]] : Wide(0);
      if (inverse == 0) continue;
      const Wide* vector = at(rows_[s]);
      const Wide component = dot(row, vector, a_.width) * inverse;
      if (!std::isfinite(component)) continue;  // a NaN stays where it is
      const Wide move = a_.operation == SteerOperation::kRemove ? -(strengths_[s] * component)
                                                                : strengths_[s] - component;
      add_scaled(row, vector, move * inverse, a_.width);
    }
  }

  const Steer& a_;
  const Wide *table_, *inverse_norms_;
  const std::int32_t* rows_ = nullptr;
  const Wide* strengths_ = nullptr;
  std::int64_t active_ = 0;
  const Wide* direction_ = nullptr;
  Wide scale_ = 0, threshold_ = 0;
  std::int32_t gate_ = 0;
};

// Tokens [begin, end) of the batch, counted through all sequences.
template <typename Element, typename Wide>
void steer_tokens(const Steer& a, std::int64_t begin, std::int64_t end) {
  Sequence<Element, Wide> sequence(a);
  for (std::int64_t b = begin / a.tokens; b * a.tokens < end; ++b) {
    sequence.select(b);
    if (!sequence.changes()) continue;
    const std::int64_t first = std::max(begin - b * a.tokens, std::int64_t(0));
    const std::int64_t last = std::min(end - b * a.tokens, a.tokens);
    for (std::int64_t t = first; t < last; ++t) {
      if (a.mask && !a.mask[b * a.mask_batch_stride + t * a.mask_token_stride]) continue;
      sequence.steer(static_cast<Element*>(a.hidden) + b * a.batch_stride + t * a.token_stride);
    }
  }
}

// Elements below which starting a thread costs more than it saves.
constexpr std::int64_t kSerial = 4 << 20;

}  // namespace

void steer_cpu(const Steer& args) {
  const std::int64_t tokens = args.batch * args.tokens;
  if (tokens == 0) return;
  dispatch(args.dtype, [&](auto* element, auto* wide) {
    const auto steer =
        steer_tokens<std::decay_t<decltype(*element)>, std::decay_t<decltype(*wide)>>;
    if (args.threads < 2 || tokens * args.width < kSerial) return steer(args, 0, tokens);
    // Several tasks per thread, so that masked stretches do not leave one idle.
    const std::int64_t tasks = std::min<std::int64_t>(tokens, 8 * args.threads);
    share_out(tasks, args.threads, [&](std::int64_t task) {
      steer(args, tokens * task / tasks, tokens * (task + 1) / tasks);
    });
  });
}

}  // namespace expertsteer
