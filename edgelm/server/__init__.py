"""Server: one loaded model behind OpenAI's and Anthropic's HTTP interfaces.

Modules:
    app: the routes, and what happens when the server starts and ends.
    guard: who may ask: hosts, origins, keys, sizes of bodies.
    connection: what a client may keep open: slow requests, answers that nobody reads.
    desk: the model's answers for asyncio: a queue with a limit, cancelled when the client goes.
    fields: the fields of a body, each taken once; what nobody takes is refused by name.
    refusals: errors as their status and body.
    sampling: the fields that choose tokens, shared by all endpoints.
    chat, completions, responses, messages: answers in the forms of OpenAI's interfaces and of
        Anthropic's, as streams of parts that a call without streaming folds.
    usage: the tokens of a call.
    texts: embeddings, labels, tokens, the model and its plan.
    tool_calls: calls of functions in an answer's text.
    token_names: tokens and their log-probabilities as JSON.
    events: server-sent events, and clients that go.
    openapi: the description of paths and fields at ``/openapi.json``.
    page: the chat at ``/``, in page.html.
    measures: counters and gauges in Prometheus' format.

Above ``quantization`` in the ladder of tests/test_house.py: imports point down only.
"""
