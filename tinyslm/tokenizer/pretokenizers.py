"""How text is cut into words before byte-level BPE: one row for each name that `tokenizer.ggml.pre` may hold.

A GGUF file names its pre-tokenizer and holds neither its regular expression nor its flags, so both are tabled here. The
expressions are those of the models' own tokenizer files (Oniguruma syntax); the names and flags are those that the
GGUF converters write and llama.cpp reads. Where llama.cpp cuts otherwise than the tokenizer file (NFC, Falcon's bytes,
single digits), the tokenizer file is followed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """One row.

    patterns: applied one after the other; each cuts what the ones before it left into its matches and what lies between
    byte_patterns: the same, over the stand-ins of the word's bytes
    nfc: text is brought to Unicode's form NFC first
    ignore_merges: a word that is itself in the vocabulary becomes that token, whatever the merges say
    add_bos: whether BOS is added where the file has no `tokenizer.ggml.add_bos_token`
    """

    patterns: tuple[str, ...]
    byte_patterns: tuple[str, ...] = ()
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


def _ranges(text: str) -> str:
    """A character class's inside from hexadecimal ranges: code points whose NFC form differs survive no editor."""
    return "".join("-".join(chr(int(end, 16)) for end in part.split("-")) for part in text.split())


# Two that the tokenizers library has parts of its own for, whose Unicode is not that of its regular expressions.
DIGIT = r"\p{N}"
PUNCTUATION = r"[\p{P}$+<=>^~|`]+"

_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"  # white space: line ends with what leads up to them, then all but the last, then it
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_TAIL}"

# Words that change case at most once, from lower to upper never: GPT-4o's and Tekken's.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_CASED_TAIL = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_TAIL}"
_CASED_CONTRACTED = rf"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?"
_GPT4O = rf"{_CASED_CONTRACTED}|\p{{N}}{{1,3}}|{_CASED_TAIL}"

_CJK = _ranges("4E00-9FA5 3040-309F 30A0-30FF")
_CJK_DEEPSEEK = _ranges("4E00-9FA5 0800-4E00 AC00-D7FF")
_PUNCTUATED = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
)
_DEEPSEEK3 = (r"\p{N}{1,3}", f"[{_CJK}]+", rf"{_PUNCTUATED}[\r\n]*|{_TAIL}")
_DEEPSEEK_LETTERS = _ranges(
    "0041-005A 0061-007A 00B5 00C0-00D6 00D8-00F6 00F8-01BA 01BC-01BF 01C4-0293 0295-02AF 0370-0373 0376 0377 "
    "037B-037D 037F 0386 0388-038A 038C 038E-03A1 03A3-03F5 03F7-0481 048A-052F 0531-0556 10A0-10C5 13A0-13F5 "
    "13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 "
    "1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 "
    "1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E "
    "2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF "
    "FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF "
    "1E900-1E943"
)
_DEEPSEEK_SYMBOLS = _ranges("0021-002F 003A-007E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
_SENTENCE = rf" ?[^(\s|.,!?{_ranges('2026 3002 FF0C 3001 0964 06D4 060C')})]+"
_YOUTU = (
    rf"[{_ranges('AC00-D7A3 3131-318E')}]+"
    rf"|[{_ranges('FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F')}]+"
    rf"|[{_ranges('3105-312F')}]+|[{_CJK}]+"
)

_llama3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_llama3_plain = PreTokenizer((_LLAMA3,))
_gpt2 = PreTokenizer((_GPT2,))
_neox = PreTokenizer((_GPT2,), nfc=True)
_qwen2 = PreTokenizer((_QWEN2,))
_qwen2_nfc = PreTokenizer((_QWEN2,), nfc=True)
_gpt4o = PreTokenizer((_GPT4O,))
_digits_gpt2 = PreTokenizer((DIGIT, _GPT2))
_deepseek3 = PreTokenizer(_DEEPSEEK3)
_bailing = PreTokenizer(
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_tiny_aya = PreTokenizer((r"\d{1,3}(?=(?:\d{3}){0,100}\b)", _GPT4O))
_sentence = PreTokenizer((_SENTENCE,))

PRETOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "llama3": _llama3,
    "llama-v3": _llama3,
    "llama-bpe": _llama3,
    "falcon3": _llama3,
    "falcon-h1": _llama3,
    "pixtral": _llama3,
    "midm-2.0": _llama3,
    "lfm2": _llama3,
    "minicpm5": PreTokenizer(
        (r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_SYMBOLS}|{_TAIL}"), ignore_merges=True
    ),
    "dbrx": _llama3_plain,
    "smaug-bpe": _llama3_plain,
    "glm4": _llama3_plain,
    "chatglm-bpe": _llama3_plain,
    "jais-2": PreTokenizer(
        (
            rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|\s{{0,4096}}[\r\n]+|\s{{512}}(?!\S)|\s{{256}}(?!\S)"
            r"|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s",
        )
    ),
    "gpt-2": _gpt2,
    "phi-2": _gpt2,
    "mpt": _neox,
    "olmo": _neox,
    "jais": _gpt2,
    "trillion": _gpt2,
    "granite-docling": _gpt2,
    "exaone4": _gpt2,
    "gigachat": _gpt2,
    "a.x-4.0": _gpt2,
    "mellum": _gpt2,
    "starcoder": _digits_gpt2,
    "refact": _digits_gpt2,
    "command-r": PreTokenizer((DIGIT, _GPT2), nfc=True),
    "smollm": _digits_gpt2,
    "codeshell": _digits_gpt2,
    "exaone": _digits_gpt2,
    "minerva-7b": _digits_gpt2,
    "mellum2": _digits_gpt2,
    # Falcon's file looks for digits among the stand-ins of bytes, six of which are digits to Unicode.
    "falcon": PreTokenizer((PUNCTUATION, _GPT2), ("[0-9²³¹¼½¾]+", "[0-9][0-9][0-9]")),
    "qwen2": _qwen2_nfc,
    "deepseek-r1-qwen": _qwen2,
    "kormo": _qwen2,
    "f2llmv2": _qwen2,
    "megrez": _qwen2,
    "stablelm2": _qwen2_nfc,
    "hunyuan": _qwen2,
    "solar-open": _qwen2,
    "grok-2": _qwen2,
    "laguna": PreTokenizer((r"[^\n]+|\n+", _QWEN2)),
    "ufakzeka": PreTokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}|{_TAIL}",)),
    "qwen35": PreTokenizer(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}",
        )
    ),
    "seed-coder": PreTokenizer((rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_TAIL}",)),
    "bailingmoe": _bailing,
    "bailingmoe2": _bailing,
    "llada-moe": _bailing,
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            rf"\s?[{_DEEPSEEK_SYMBOLS}]+",
            r"\s+$",
            f"[{_CJK_DEEPSEEK}]+",
            DIGIT,
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{_CJK_DEEPSEEK}]+", DIGIT)),
    "deepseek-v3": _deepseek3,
    "hunyuan-dense": _deepseek3,
    "hy_v4": _deepseek3,
    "joyai-llm": _deepseek3,
    "spark2_5": PreTokenizer(
        (r"\p{N}{1,3}", f"[{_CJK}]+", rf"{_PUNCTUATED}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")
    ),
    "youtu": PreTokenizer((_YOUTU, rf"{_CASED_CONTRACTED}|\p{{N}}|{_CASED_TAIL}"), ignore_merges=True),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": _gpt4o,
    "llama4": _gpt4o,
    "kanana2": _gpt4o,
    "talkie": _gpt4o,
    "minimax-m2": _gpt4o,
    "tiny_aya": _tiny_aya,
    "cohere2moe": _tiny_aya,
    "poro-chat": _sentence,
    "bloom": _sentence,
    "gpt3-finnish": _sentence,
    "viking": PreTokenizer((_SENTENCE, DIGIT)),
}  # fmt: skip
