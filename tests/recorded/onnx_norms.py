"""Makes onnx_norms.npz: ONNX's own test cases for LRN and LpNormalization.

    python tests/recorded/onnx_norms.py    # with onnx 1.20 or later

For each case: x, y and the attributes of the operator.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

if __name__ == "__main__":
    np.random.seed(0)  # the cases draw their data
    found = {}
    for case in collect_testcases(None):
        nodes = case.model.graph.node if case.model else []
        if len(nodes) == 1 and nodes[0].op_type in ("LRN", "LpNormalization"):
            ((inputs, outputs),) = case.data_sets
            found |= {f"{case.name}/x": inputs[0], f"{case.name}/y": outputs[0]}
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
            found |= {f"{case.name}/{nodes[0].op_type} {name}": value for name, value in attributes.items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)
