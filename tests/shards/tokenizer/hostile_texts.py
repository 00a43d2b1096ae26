"""Texts on which tokenizers differ: whitespace, digits, lists, code, scripts, marks, special tokens."""

from __future__ import annotations

TEXTS: tuple[str, ...] = (
    # whitespace
    " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r\n\r\n", "\n \n", " \n", "\n ", "\t\n\t",
    "  \n  \n  ", " x", "  x", "   x", "x ", "x  ", "\tx", "\t\tx", "x\ty", "x\n", "x\n\ny", "x \n y",
    "x\r\ny", "a  b   c    d", "\u00a0x", "\u3000x", "x\u2003y", "\u200bx", "\u0085x", "\u2028x",
    "\ufeffx", "\x0bx\x0c", "x \u00a0 y", " " * 17 + "x", "\n" * 9, "\t" * 5 + "x", " \t \n \t x",
    # digits
    "1", "12", "123", "1234", "12345678", " 1", " 12", "  42", "   1234", "\n\n1. x", "\n\n2020",
    "1,234.5", "v1.2.3", "0x1F", "3.14e-10", "10%", "٣٤٥", "१२३४", "½⅓x", "Ⅷ", "x²", "①②③",
    "a1b22c333", "１２３４",
    # lists, tables, code, addresses
    "1. a\n2. b\n\n3. c", "- a\n  - b\n\n* c", "| a | 10 |\n|---|---:|",
    "  10   20   30\n  11   21   31", "def f(x):\n    return x**2\n", "\tif (a&&b)||!c {\n",
    "for(;;){i++;}", "x==y!=z<=w", "a->b::c.d", "<p>&amp;</p>", "https://a.b/c?d=e&f=%20#g",
    "me@x.org", '{"a": [1, 2]}', "#!/bin/sh\n", "// x\n/* y */", "$x=`y`;", "C:\\x\\y",
    # words, contractions, letter cases
    "Hello, world!", "it's I'd we'll THEY'RE don't", "IT'S I'D WE'LL they'Re", "it’s we’ll", "'s't're",
    "x's 's", "'Tis o'clock", "HelloWorld helloWorld", "XMLHttpRequest2", "a_b_c __x__", "Straße ǅ ǈx",
    "ﬁne ﬀ", "ſ'ſ 'K", "l'été", "Türkiye'nin", "the the  the", "(hello) [x] {y}", "...!!!???",
    "wait... what?!", "a-b–c—d", "\"'`",
    # scripts and marks
    "naïve café", "e\u0301 cafe\u0301", "Ωμέγα Привет", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया",
    "বাংলা", "ภาษาไทย", "ພາສາລາວ", "ខ្មែរ", "မြန်မာ", "中文字符", "日本語とカタカナ", "한국어 ㄱㄴ",
    "中文abc中文", "中 文", "、。「」！？", "ㄅㄆㄇ", "豈㐀𠀀", "ｱｲｳ", "Ａｂｃ", "𝐀𝒷𝟗", "ᏣᎳᎩ Ꭰ", "𐐀𐐨",
    "ʰaʲ", "a\u0308\u0301\u0302b", "\u0301x", " \u0301", "அம்மா", "తెలుగు", "ქართული", "Հայերեն",
    "አማርኛ", "a\u200db\u200c",
    # signs
    "😀👍🏽", "👨‍👩‍👧‍👦", "🇫🇷🇩🇪", "❤️x", "x😀y 😀", "€5 £6 ¥7", "©®™", "→⇒x", "∑∫≤", "─│┌", "•x ·y",
    "a…b", "¿qué?", "«x»",
    # bytes and code points of no character
    "\x00", "a\x00b", "\x01\x02", "\x7f", "\u0080", "\ue000x", "\U000e0001", "\ufffd", "\U0010ffff",
    "\u0378x", "\U0001f9ff", "x\u202ey", "\ufdd0",
    # what looks like tokens
    "<s>", "</s>x", "<|im_start|>user\n", "[INST] hi [/INST]", "<0x0A>", "▁x ▁▁", "Ġx Ċ", "<unk>",
    "<sentinel:1>", "IMGIMGABZ",
)  # fmt: skip
"""At most 64 bytes each."""

LONG_TEXTS: tuple[str, ...] = (
    "a" * 300,
    "ab " * 100,
    " " * 600 + "x",
    "\n" * 300,
    "1" * 300,
    "!" * 300,
    "中" * 200,
    "e\u0301" * 150,
    "😀" * 100,
    "xY" * 150,
)
