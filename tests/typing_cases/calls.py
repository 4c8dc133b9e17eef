"""What a type checker says of calls. A line that it must refuse ends with the error's code."""

from typing import Any, assert_type

import edgelm

lm = edgelm.load("demo", quant="int4", context="4k", budget="6G")
n: int = 2

assert_type(lm.generate("x").text, str)
assert_type(lm.generate([1, 2, 3], max_new_tokens=5, temperature=0.5), edgelm.Result)
assert_type(lm.generate("x", n=1), edgelm.Result)
assert_type(lm.generate(["a", "b"], seed=[1, 2])[0].text, str)
assert_type(lm.generate("x", n=2)[0], edgelm.Result)
assert_type(lm.generate(["a"], n=n)[0], list[edgelm.Result])
assert_type(lm.chat([{"role": "user", "content": "x"}], stop=["a"]), edgelm.Result)
assert_type(next(lm.stream("x", stop="a", stop_token_ids=[1], parse_special=False)), edgelm.Chunk)
lm.chat([{"role": "user", "content": [{"type": "text", "text": "x"}]}], tools=[{"name": "f"}])
lm.chat([], template_variables={"enable_thinking": False}, continue_final_message=True)
assert_type(lm.decode([1, 2]), str)
assert_type(lm.decode([[1], [2]]), list[str])
assert_type(lm.encode("x"), list[int])
assert_type(edgelm.plan("demo", kv="int8"), edgelm.Plan)
assert_type(edgelm.quantize("a", "b", quant={"default": "int8"}), edgelm.Quantized)
edgelm.evaluate("demo", text="file", quant="int4", threads=1).to_dict()
assert_type(lm.predict(("question", "context")).score, float)
assert_type(lm.predict([("question", "context")])[0].start, int | None)
print(lm.predict("x"), lm.predict(["a", "b"])[0])
print(lm.forward(None, output_attentions=True).attentions)


async def forms() -> None:
    assert_type(await lm.agenerate("x", seed=1), edgelm.Result)
    assert_type(await lm.agenerate(["a"]), list[edgelm.Result])
    assert_type(await lm.agenerate("x", n=2), list[edgelm.Result])
    await lm.achat([], bogus=1)  # call-arg
    await lm.agenerate("x", bogus=1)  # call-overload


lm.generate("x", max_tokens=5)  # call-overload
lm.generate("x", temperature="hot")  # arg-type
print(lm.generate("x").texts)  # attr-defined
print(lm.generate(["a"]).text)  # attr-defined
lm.stream("x", max_tokens=5)  # call-arg
lm.chat([], top_pp=1.0)  # call-arg
lm.chat([], parse_special=True)  # call-arg
lm.stream("x", tools=[])  # call-arg
lm.request("x", bogus=1)  # call-arg
lm.forward(None, atention_mask=None)  # call-arg
edgelm.load("demo", qant="int4")  # call-arg
edgelm.load("demo", context=1.5)  # arg-type
edgelm.plan("demo", n_ctx=5)  # call-arg
edgelm.evaluate("demo", txt="file")  # call-arg
edgelm.laod("demo")  # attr-defined

options: edgelm.GenerateOptions = {"max_new_tokens": 5, "top_p": 0.9}
lm.generate("x", **options)
settings: dict[str, Any] = {"quant": "int8"}
edgelm.load("demo", **settings)
