#include "steer_arguments.h"

#include <pybind11/pybind11.h>

#include <string>

namespace expertsteer {
namespace {

// A mask is only read, so its entries may share addresses (an expanded one).
TensorArgument mask_of(PyObject* mask, DLDevice device, std::int64_t batch, std::int64_t tokens) {
  return checked_or_none("mask", mask, kind<bool>(device), {batch, tokens}, Layout::kStrided);
}

void require_one_or(const TensorArgument& argument, std::int64_t sequences) {
  if (argument.given && argument.sizes[0] != 1 && argument.sizes[0] != sequences) {
    refuse(argument, "for 1 sequence or for " + std::to_string(sequences));
  }
}

std::int64_t shared_or_own(const TensorArgument& argument) {
  return argument.sizes[0] == 1 ? 0 : argument.strides[0];
}

TensorArgument hidden_of(PyObject* hidden, std::int32_t device_type) {
  Kind kind = read_tensor("hidden", hidden).kind;
  kind.device.type = device_type;
  const TensorArgument states =
      checked("hidden", hidden, kind, {kAnySize, kAnySize, kAnySize}, Layout::kStrided);
  for (int i = 0; i < 3; ++i) {
    if (states.sizes[i] > 1 && states.strides[i] == 0) {
      refuse(states, "a tensor whose entries do not share addresses (call .clone())");
    }
  }
  return states;
}

}  // namespace

Standing standing_arguments(const SteerTensors& tensors, DType dtype, std::int64_t width,
                            int operation, int threads) {
  if (operation < 0 || operation > 3) {
    throw pybind11::value_error("operation must be from 0 to 3, came " + std::to_string(operation));
  }
  const DLDevice device = read_tensor("table", tensors.table).kind.device;
  const Kind wide = wide_kind(dtype, device), number = kind<std::int32_t>(device);
  const TensorArgument table =
      checked("table", tensors.table, wide, {kAnySize, width}, Layout::kRows);
  const TensorArgument norms =
      checked_or_none("inverse_norms", tensors.inverse_norms, wide, {table.sizes[0]});
  const TensorArgument rows =
      checked("rows", tensors.rows, number, {kAnySize, kAnySize}, Layout::kRows);
  const TensorArgument strengths =
      checked("strengths", tensors.strengths, wide, {kAnySize, rows.sizes[1]}, Layout::kRows);
  const TensorArgument gates =
      checked_or_none("gates", tensors.gates, number, {kAnySize}, Layout::kStrided);
  const TensorArgument thresholds =
      checked_or_none("thresholds", tensors.thresholds, wide, {kAnySize}, Layout::kStrided);
  std::int64_t sequences = 1;
  for (const TensorArgument* each : {&rows, &strengths, &gates, &thresholds}) {
    if (sequences == 1 && each->given) sequences = each->sizes[0];
    require_one_or(*each, sequences);
  }
  const bool removes = operation == static_cast<int>(SteerOperation::kRemove) ||
                       operation == static_cast<int>(SteerOperation::kClamp);
  if (gates.given != thresholds.given) {
    throw pybind11::value_error("gates and thresholds belong together: give both, or neither");
  }
  if (!norms.given && (gates.given || removes)) {
    throw pybind11::value_error("inverse_norms must be given with gates and for this operation");
  }
  Steer args{};
  args.dtype = dtype;
  args.width = table.sizes[1];
  args.operation = static_cast<SteerOperation>(operation);
  args.vectors = rows.sizes[1];
  args.table = table.address;
  args.table_stride = table.strides[0];
  args.inverse_norms = norms.address;
  args.rows = rows.at<const std::int32_t>();
  args.rows_stride = shared_or_own(rows);
  args.strengths = strengths.address;
  args.strengths_stride = shared_or_own(strengths);
  args.gates = gates.at<const std::int32_t>();
  args.gates_stride = shared_or_own(gates);
  args.thresholds = thresholds.address;
  args.thresholds_stride = shared_or_own(thresholds);
  args.threads = threads;
  return Standing{args, device, sequences};
}

Steer steer_arguments(PyObject* hidden, const SteerTensors& tensors, PyObject* mask, int operation,
                      int threads, std::int32_t device_type) {
  const TensorArgument states = hidden_of(hidden, device_type);
  const Standing standing =
      standing_arguments(tensors, steered_type(states), states.sizes[2], operation, threads);
  if (!(standing.device == states.kind.device)) refuse(states, "on the device of its table");
  if (standing.sequences != 1 && standing.sequences != states.sizes[0]) {
    refuse(states, "of the " + std::to_string(standing.sequences) +
                       " sequences that rows and strengths are given for");
  }
  const TensorArgument where = mask_of(mask, standing.device, states.sizes[0], states.sizes[1]);
  Steer args = standing.args;
  args.hidden = states.address;
  args.batch = states.sizes[0];
  args.tokens = states.sizes[1];
  args.batch_stride = states.strides[0];
  args.token_stride = states.strides[1];
  args.element_stride = states.strides[2];
  args.mask = where.at<const std::uint8_t>();
  args.mask_batch_stride = where.strides[0];
  args.mask_token_stride = where.strides[1];
  return args;
}

}  // namespace expertsteer
