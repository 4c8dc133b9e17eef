"""An example or two of each command, shown at the end of its help."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("edgelm demo", "edgelm demo --quant int8 --json"),
    "generate": (
        'edgelm generate demo "Once upon a time" --max-tokens 64 --temperature 0.8 --seed 1',
        "edgelm generate demo --file prompts.txt --schema answer.json --json",
        "edgelm generate demo - --max-tokens 4k < prompt.txt",
    ),
    "chat": (
        "edgelm chat demo",
        "edgelm chat google/gemma-2-2b-it --budget 4GiB --context 8k",
        "edgelm chat HuggingFaceTB/SmolLM3-3B --template-variables '{\"enable_thinking\": false}'",
    ),
    "run": ("edgelm run demo",),
    "serve": (
        "edgelm serve demo --port 8080",
        "edgelm serve google/gemma-2-2b-it --budget 4GiB --users 4",
    ),
    "plan": (
        "edgelm plan google/gemma-2-2b-it --budget 4GiB --context 8k",
        "edgelm plan --shape llama-3.2-1b --table",
    ),
    "quantize": (
        "edgelm quantize google/gemma-2-2b-it gemma-int4 --quant int4",
        "edgelm quantize demo demo-int8 --quant int8 --method mse",
        "edgelm quantize google/gemma-2-2b-it gemma-int4 --max-kld 0.05",
    ),
    "verify": (
        "edgelm verify gemma-int4",
        "edgelm verify gemma-int4 --original google/gemma-2-2b-it --json",
    ),
    "eval": (
        "edgelm eval demo --quant int4 --text wiki.test.raw",
        "edgelm eval demo --task arc_easy=arc_easy.jsonl --limit 200 --json",
    ),
    "compare": (
        "edgelm compare demo --quant int4,int8,nf4 --text wiki.test.raw --limit 20",
        "edgelm compare gemma --quant int4,gguf:gemma-q4_k_m.gguf,gemma-gptq --text texts/ "
        "--task arc_easy=arc_easy.jsonl --report out.html",
    ),
    "sweep": (
        "edgelm sweep grid.json --out cells",
        "edgelm sweep grid.json --out /shared/cells --ray auto --csv table.csv",
    ),
    "bench": (
        "edgelm bench demo --prompt-tokens 128 --decode-tokens 32",
        "edgelm bench --shape gemma-2-2b --quant int4",
    ),
    "inspect": ("edgelm inspect demo -v", "edgelm inspect gemma-int4 --verify"),
    "mask": ('edgelm mask demo "Hello there" "Hello" --padding left',),
    "pull": ("edgelm pull demo", "edgelm pull google/gemma-2-2b-it --revision main"),
    "list": ("edgelm list", "edgelm list -v"),
    "rm": ("edgelm rm google/gemma-2-2b-it", "edgelm rm demo --yes"),
    "ps": ("edgelm ps", "edgelm ps --json"),
    "doctor": ("edgelm doctor -v", "edgelm doctor --verify"),
}


def epilog(command: str) -> str:
    """Examples as Typer shows them: a paragraph each."""
    return "\n\n".join(["Examples:", *EXAMPLES[command]])
