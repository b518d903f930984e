"""`tidegate import` of small files that ask for endless work: refused at once."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from tests.export.importing.graphs import lstm
from tests.export.importing.importing import axes, imported, refusal


def with_functions(*calls: tuple[str, ...]) -> onnx.ModelProto:
    """A model that calls F0; function n runs the operators `calls[n]` one after the other."""
    net = lstm()
    net.output(net.add("F0", "y", domain="acme"), "told")
    net.opsets.append(helper.make_opsetid("acme", 1))
    model = net.model()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    for number, operators in enumerate(calls):
        values = ["v", *(f"v{place}" for place in range(len(operators) - 1)), "w"]
        body = [
            helper.make_node(
                operator, [values[place]], [values[place + 1]], domain="acme" if operator[0] == "F" else ""
            )
            for place, operator in enumerate(operators)
        ]
        model.functions.append(helper.make_function("acme", f"F{number}", ["v"], ["w"], body, opsets))
    return model


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([*((f"F{n + 1}", f"F{n + 1}") for n in range(30)), ("Neg",)], "expand to more than 1,000,000 nodes"),
        ([("F1",), ("F0",)], "calls itself"),
    ],
)
def test_local_functions_that_never_end_are_refused(tmp_path: Path, calls: list[tuple[str, ...]], reason: str) -> None:
    file = tmp_path / "foreign.onnx"
    file.write_bytes(with_functions(*calls).SerializeToString())
    assert reason in refusal(file, tmp_path)


def test_local_functions_that_multiply_in_branches_are_refused(tmp_path: Path) -> None:
    """Each calls the next in both branches of an If: 2**30 nodes."""
    model = with_functions(*(("Neg",) for _ in range(31)))
    out = helper.make_tensor_value_info("out", 1, None)
    for number, function in enumerate(model.functions[:-1]):
        call = [helper.make_node(f"F{number + 1}", ["v"], ["out"], domain="acme")]
        branch = helper.make_graph(call, "branch", [], [out])
        del function.node[:]
        function.node.append(helper.make_node("If", ["v"], ["w"], then_branch=branch, else_branch=branch))
    file = tmp_path / "foreign.onnx"
    file.write_bytes(model.SerializeToString())
    assert "expand to more than 1,000,000 nodes" in refusal(file, tmp_path)


def test_a_graph_with_a_cycle_is_refused(tmp_path: Path) -> None:
    model = lstm().model()
    model.graph.node.extend([helper.make_node("Add", ["y", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])])
    file = tmp_path / "foreign.onnx"
    file.write_bytes(model.SerializeToString())
    assert "a cycle" in refusal(file, tmp_path)


def test_many_nodes_in_the_wrong_order_are_put_in_order(tmp_path: Path) -> None:
    model, last = lstm().model(), "y"
    chain = []
    for number in range(3000):
        chain.append(helper.make_node("Neg", [last], [f"n{number}"]))
        last = f"n{number}"
    model.graph.node.extend(reversed(chain))
    model.graph.output.append(helper.make_tensor_value_info(last, 1, None))
    file = tmp_path / "foreign.onnx"
    file.write_bytes(model.SerializeToString())
    assert last in axes(imported(file, tmp_path))
