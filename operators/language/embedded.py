"""The GGUF file that a package ships, turned into a folder that transformers and vLLM both load."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes ``gguf`` as safetensors (bfloat16) with a plain config, a fast tokenizer and its chat template.

    The quantised weights are de-quantised once; bfloat16 rounds them by at most 2^-9 of their size, far below
    what the 4-bit quantisation lost. The config is copied without ``quantization_config``: vLLM would
    refuse the folder with it. Only architectures whose GGUF transformers can read are possible. Errors: ValueError
    where the file has no fast tokenizer; whatever transformers raises where it cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    with contextlib.redirect_stderr(io.StringIO()):  # not all of transformers' progress bars can be turned off
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        if not tokenizer.is_fast:
            raise ValueError(f"{gguf.name}: no fast tokenizer can be made of it")
        read = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **source
        )
        config = read.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            config.pop(key, None)
        plain = type(read.config)(**config)
        plain.architectures = [type(read).__name__]
        model = type(read)(plain).to(torch.bfloat16)
        model.load_state_dict(read.state_dict())
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            chat_template=tokenizer.chat_template,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            unk_token=tokenizer.unk_token,
            pad_token=tokenizer.pad_token or tokenizer.eos_token,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(folder)
    # transformers 5 writes a class name that 4 does not know; this one both know
    named = folder / "tokenizer_config.json"
    settings = json.loads(named.read_text("utf-8"))
    named.write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n", "utf-8")
