"""How each kind of byte-level BPE splits a text before it merges, by the names that GGUF files use.

Names, expressions and flags are facts of llama.cpp's ``src/llama-vocab.cpp`` at commit 0c1e57098 (in
llama-cpp-python 0.3.36). Where that file notes the expression of the original tokenizer.json beside one that
its own engine can run, the original stands here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED_WORDS = (  # with one sign before it: words in capitals, capitalized ones and small ones
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+END"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*END"
)
_ASCII_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
QWEN2_SPLIT = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
TEKKEN_SPLIT = _CASED_WORDS.replace("END", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
GPT4O_SPLIT = (
    _CASED_WORDS.replace("END", f"{_CONTRACTIONS}?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)
DEEPSEEK3_SPLIT = _ASCII_WORD + r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES

_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_CJK = r"[一-龥\u3040-ゟ゠-ヿ]+"
_CJK_HANGUL = "[一-龥ࠀ-一가-퟿]+"
_WORD_OR_SIGNS = r" ?[^(\s|.,!?…。，、।۔،)]+"
_LINES = r"[^\n]+|[\n]+"
_LAST_SPACES = r"(?<!\s)\s+$"
"""The original, ``\\s+$``, matches the same, but takes quadratic time on spaces before other text."""
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-z"
    "µÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-"
    "ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ"
    "𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"
_JAIS2 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    + "".join(rf"|\s{{{length}}}(?!\S)" for length in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
    + r"|\s{1}"
)
_QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
_SEED_CODER = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_UFAKZEKA = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_MINICPM5 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_SPARK = _ASCII_WORD + r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
_YOUTU_SCRIPTS = r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+"
_YOUTU = _CASED_WORDS.replace("END", f"{_CONTRACTIONS}?") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
_KIMI = (
    r"[\p{Han}]+|"
    + _CASED_WORDS.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]").replace("END", f"{_CONTRACTIONS}?")
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    + _SPACES
)
_AFMOE_SCRIPTS = (
    r"[一-鿿㐀-䶿\u8c48-\ufaff\u3040-ゟ゠-ヿ･-ﾟ\u2f00-\u2fdfเ-\u0e7f\u0e80-\u0effក-\u17ffက-႟\uaa60-\uaa7f"
    r"\ua9e0-\ua9ff가-\ud7afᄀ-ᇿ]+"
)
_EXAONE_MOE = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
    + r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
"""Digits in groups of three as written: 1,234,567."""
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    _DIGIT,
    r"[\p{P}!-/:-@\[-`{-~]",
    GPT2_SPLIT,
)

LINEAR = frozenset(
    {GPT2_SPLIT, LLAMA3_SPLIT, QWEN2_SPLIT, TEKKEN_SPLIT, GPT4O_SPLIT, DEEPSEEK3_SPLIT}
    | {DEEPSEEK3_SPLIT.replace(r"\r\n", "\r\n"), "[\r\n]", r"\p{N}+", _LAST_SPACES}
    | {_DIGIT, _THREE_DIGITS, r"[0-9][0-9][0-9]", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"\d", r" {2,}"}
    | {_CJK, "[一-龥぀-ゟ゠-ヿ]+", _CJK_HANGUL, _WORD_OR_SIGNS, _LINES, _DEEPSEEK_LETTERS, _PUNCTUATION}
    | {r"[\p{P}\$\+<=>\^~\|`]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", _YOUTU_SCRIPTS, _AFMOE_SCRIPTS}
    | {_JAIS2, _QWEN35, _SEED_CODER, _BAILING, _UFAKZEKA, _MINICPM5, _SPARK, _YOUTU, _KIMI}
    | {*_CHAMELEON}
)
"""Expressions of models in use that take linear time on any text: tried with long runs of each kind of
character. Others run where they can be ended."""


@dataclass(frozen=True, slots=True)
class Splitting:
    """``expressions``: each splits what the one before left whole, and what it does not match stays whole,
    too. ``ignore_merges``: a piece that is a token is that token, whether merges lead to it or not.
    ``begins``: texts begin with the begin-of-text token where the file does not say."""

    expressions: tuple[str, ...]
    ignore_merges: bool = False
    begins: bool = False


_GPT2 = Splitting((GPT2_SPLIT,))
_DIGITS_GPT2 = Splitting((_DIGIT, GPT2_SPLIT))
_LLAMA3 = Splitting((LLAMA3_SPLIT,))
_LLAMA3_WHOLE = Splitting((LLAMA3_SPLIT,), ignore_merges=True)
_QWEN2 = Splitting((QWEN2_SPLIT,))
_GPT4O = Splitting((GPT4O_SPLIT,))
_DEEPSEEK3 = Splitting((_THREE_DIGITS, _CJK, DEEPSEEK3_SPLIT))
_BLOOM = Splitting((_WORD_OR_SIGNS,))
_BAILINGMOE = Splitting((_BAILING,))
_TINY_AYA = Splitting((r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O_SPLIT))

DEFAULT = Splitting((_PUNCTUATION, GPT2_SPLIT, r"\p{N}+", r"[0-9][0-9][0-9]"))
"""The splitting of files that name none, which are older than the names. It is a guess, as in llama.cpp."""

SPLITTINGS: dict[str, Splitting] = {
    "default": DEFAULT,
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
        + ("jina-v5-nano",),
        replace(_LLAMA3_WHOLE, begins=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _LLAMA3),
    **dict.fromkeys(("glm4", "glm5"), _LLAMA3_WHOLE),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0")
        + ("mellum", "modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "exaone4", "mpt", "olmo")
        + ("jais", "trillion", "granite-docling"),
        _GPT2,
    ),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
        _DIGITS_GPT2,
    ),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan", "solar-open")
        + ("grok-2",),
        _QWEN2,
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _BLOOM),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILINGMOE),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _TINY_AYA),
    "afmoe": Splitting((_FROM_THE_RIGHT, _AFMOE_SCRIPTS, DEEPSEEK3_SPLIT)),
    "chameleon": Splitting(_CHAMELEON, begins=True),
    "deepseek-coder": Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_HANGUL, _DIGIT)),
    "deepseek-llm": Splitting(
        (
            r"[\r\n]",
            _DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            _LAST_SPACES,
            _CJK_HANGUL,
            r"\p{N}+",
        )
    ),
    "exaone-moe": Splitting((_EXAONE_MOE,)),
    "falcon": Splitting((r"[\p{P}\$\+<=>\^~\|`]+", GPT2_SPLIT, r"[0-9][0-9][0-9]")),
    "granite-embed-multi-97m": replace(_GPT4O, ignore_merges=True),
    "jais-2": Splitting((_JAIS2,)),
    "kimi-k2": Splitting((_KIMI,)),
    "laguna": Splitting((_LINES, QWEN2_SPLIT)),
    "minicpm5": Splitting((_THREE_DIGITS, _MINICPM5), ignore_merges=True),
    "qwen35": Splitting((_QWEN35,)),
    "seed-coder": Splitting((_SEED_CODER,)),
    "spark2_5": Splitting((_THREE_DIGITS, _CJK, _SPARK, _DIGIT)),
    "superbpe": Splitting((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "tekken": Splitting((TEKKEN_SPLIT,), ignore_merges=True, begins=True),
    "ufakzeka": Splitting((_UFAKZEKA,)),
    "viking": Splitting((_WORD_OR_SIGNS, _DIGIT)),
    "youtu": Splitting((_YOUTU_SCRIPTS, _YOUTU), ignore_merges=True),
}
"""``tokenizer.ggml.pre`` → how text is split."""

NOT_BYTE_LEVEL = frozenset({"gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace"})
"""Names whose tokens are spelled in characters, not in bytes. Their families are not served here."""
