"""The texts that the export needs, to judge the text tower and its tokenizer by.

Over `captions` it compares vectors with clip's, over `nasty` the tokens alone. With `calibration`
integers are calibrated, so that nothing is judged by what it was fitted to.
"""

import numpy as np

_ENGLISH = (
    "a photo of a cat",
    "a photo of a dog.",
    "red running shoes",
    "two children playing football on a beach at sunset",
    "A woman in a yellow raincoat walks her dog through the rain.",
    "the Eiffel Tower at night, seen from across the Seine",
    "a close-up of a bee on a lavender flower",
    "black and white portrait of an old fisherman with a pipe",
    "an aerial view of a winding road through an autumn forest",
    "a bowl of ramen with a soft-boiled egg, spring onions and nori",
    "satellite image of a river delta",
    "x-ray of a broken wrist",
    "a handwritten shopping list",
    "screenshot of a spreadsheet",
    "a cartoon elephant riding a bicycle",
    "low-resolution photo of a street in the 1970s",
    "not a photo of a cat",
    "a cat on the left and a dog on the right",
    "a dog on the left and a cat on the right",
    "three green apples and one red apple",
    "an empty room",
    "the back of a person looking at mountains",
    "a vintage Volkswagen van parked in front of a surf shop",
    "macro shot of a snowflake on dark wool",
    "wedding guests throwing rice outside a church",
    "a mountain biker mid-air above a dirt jump",
    "steam rising from a cup of coffee on a windowsill",
    "a crowded subway car during rush hour",
    "a golden retriever puppy asleep in a laundry basket",
    "northern lights over a frozen lake",
    "a chef slicing salmon behind a sushi counter",
    "a blurred photograph of a moving train",
    "an oil painting of sunflowers in a vase",
    "blueprint of a suspension bridge",
    "a toddler's first steps across the living-room carpet",
    "firefighters putting out a burning warehouse",
    "a flock of sheep blocking a country lane",
    "product photo of a stainless steel kettle on a white background",
    "size 10 women's waterproof hiking boots, brown leather",
    "a stack of old books tied with string",
    "graffiti of a whale on a brick wall",
    "a lighthouse in a storm, waves breaking over the rocks",
    "itap of a hot air balloon",
    "a tattoo of a compass on someone's forearm",
    "an astronaut floating above the Earth",
)
_OTHER_LANGUAGES = (
    "ein Foto von einer Katze",
    "Zwei Kinder spielen Fußball am Strand",
    "Ein älteres Ehepaar überquert die Straße",
    "une photo d'un chat noir sur un canapé",
    "Un marché de Noël à Strasbourg, la nuit",
    "una foto de un perro corriendo por la playa",
    "El niño sopla las velas de su pastel de cumpleaños",
    "un gatto che dorme su una sedia",
    "uma praia cheia de guarda-sóis coloridos",
    "een fiets tegen een brug in Amsterdam",
    "en röd stuga vid en sjö i Småland",
    "kissa istuu ikkunalaudalla",
    "kot śpi na krześle obok książek",
    "pes běží po zasněžené louce",
    "egy macska a háztetőn",
    "o pisică neagră pe acoperiș",
    "çiçekli bir bahçede oturan kadın",
    "một con mèo nằm trên ghế sô pha",
    "фотография кошки на подоконнике",
    "двое детей играют в снегу",
    "жінка з парасолькою під дощем",
    "μια γάτα στο παράθυρο",
    "ΜΙΑ ΓΆΤΑ ΣΤΟΥΣ ΔΡΌΜΟΥΣ",
    "一只猫坐在窗台上",
    "夕阳下的海滩",
    "窓辺に座っている猫の写真",
    "スニーカー 赤 メンズ",
    "고양이 사진",
    "해변에서 노는 아이들",
    "صورة قطة على الأريكة",
    "ילדה עם כלב בפארק",
    "एक बिल्ली की तस्वीर",
    "ภาพถ่ายของแมว",
    "Ⴤ ქართული ანბანი",
    "foto ya paka",
)
_ODD = (
    "",
    " ",
    "cat",
    "CAT",
    "a",
    "7",
    "2026",
    "!",
    "...",
    "IMG_20260314_154209.jpg",
    "https://example.com/photos/1234?size=large&format=webp",
    "#sunset #beach #nofilter @someone",
    "😀",
    "a dog 🐶 and a cat 🐱 on the moon 🌙",
    "👩‍👩‍👧‍👦 family portrait 📷",
    "price: $19.99 (was $29.99) -33%",
    "5' 11\" tall, 180 lb.",
    "it's what they'll say we've done, isn't it? I'd say you're right, I'm sure",
    "“curly quotes” and an apostrophe’s curl",
    "cafÃ© au lait, mojibake included",
    "fish &amp; chips",
    "<b>bold</b> text",
    "ＦＵＬＬ　ＷＩＤＴＨ shop sign",
    "E=mc² ± 0.5 µm ≤ 3×10⁸ m/s",
    "line one\nline two\ttabbed",
    "antidisestablishmentarianism floccinaucinihilipilification",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "qwrtpsdfghjklzxcvbnm",
    "<|startoftext|> a photo <|endoftext|>",
)
_LONG = (
    "The kitchen is long and narrow, with white tiles to the ceiling on the left, copper pans that "
    "hang above a black stove, a window over the sink through which one sees apple trees in bloom, "
    "and, in front of it all, a boy on a stool who cracks eggs into a blue bowl",
    "a street market in the rain: umbrellas, puddles, oranges, lemons, a man with a cart, a woman "
    "with a child, two nuns, a policeman on a horse, pigeons, neon signs, a red bus, a yellow taxi",
    # As long as a text can be: 75 words of one token each.
    " ".join(["a photo of a dog and a cat"] * 10),
)


_CALIBRATION_WORDS = (
    "a a a an the the this my two three many of of in in on with and by under between near for",
    "photo picture drawing sketch painting poster logo icon map screenshot render sculpture of",
    "man boy girl couple crowd doctor singer cyclist horse cow parrot snake shark bear fox mouse",
    "house tower bridge church station harbour desert jungle valley island garden kitchen stadium",
    "chair lamp clock guitar violin camera laptop phone knife bottle plate glass spoon key candle",
    "bread cheese pizza salad soup banana strawberry cake chocolate wine beer tea",
    "blue purple orange pink grey dark bright wooden metal plastic silk broken wet dirty tiny huge",
    "sits stands jumps flies swims eats drinks laughs reads writes paints repairs holds throws",
    "1984 3 42 100 50% 1/2 #1 &c. ? ! , . : ; - ( ) / @ * + = ~",
    "jpg png 4k hdr isbn usb xxl nasa bbc lol wow selfie cyberpunk",
    "Hund Straße grün Flugzeug chien forêt bleu perro árbol rojo gatto albero cane floresta",
    "собака дом зелёный σκύλος σπίτι 犬 家 緑 狗 房子 绿色 개 집 כלב بيت कुत्ता 🚗 🏠 🌳 🎂",
    "pneumonoultramicroscopic zxqvj wwwwwww supercalifragilistic rhythm tsktsk",
)


def captions() -> tuple[str, ...]:
    """More than a hundred different texts that fit the model: what people search for, and stranger.

    Most are captions of photographs. They are short and long, in many languages, up to 77 tokens.
    """
    fitting = (*_LONG[:2], " ".join(_LONG[2].split()[:75]))
    return (*_ENGLISH, *_OTHER_LANGUAGES, *_ODD, *fitting)


def calibration() -> tuple[tuple[str, int], ...]:
    """What integers are calibrated with: 128 texts, none of `captions`.

    They are words of many kinds, drawn at random. Each is to be cut to so many tokens.
    """
    random = np.random.default_rng(0)
    words = [word for words in _CALIBRATION_WORDS for word in words.split()]
    lengths = (4, 6, 8, 10, 14, 20, 40, 77)
    texts = [(" ".join(random.choice(words, 75)), length) for length in lengths for _ in range(16)]
    return tuple(texts)


def golden_text() -> str:
    """The text that the self-check encodes. Its words end as one token, as several and as bytes."""
    return "A photograph of an espresso in a white cup, 'café' — 咖啡 ☕"


def nasty() -> tuple[tuple[str, str], ...]:
    """(name, text): texts that tokenizers differ over. Of all of them clip makes tokens."""
    return (
        *_of_unicode(),
        *_of_mojibake(),
        *_of_html(),
        *_of_clips_own(),
        *_very_long(),
    )


def _of_unicode() -> tuple[tuple[str, str], ...]:
    return (
        ("nothing", ""),
        ("white space alone", " \t\r\n\x0b\x0c\u00a0\u2003\u3000\u2028\u2029\u0085"),
        ("white space between words", "a\u00a0b\u2003c\u3000d\u2028e\u0085f\x1cg\u200bh\ufeffi"),
        ("white space that is none in the other module", "\x1c\x1da\x1e b\x1f"),
        ("every control character", "".join(map(chr, [*range(32), *range(0x7F, 0xA0)]))),
        (
            "the first letters of each plane",
            "".join(chr(plane << 16 | 0x41) for plane in range(17)),
        ),
        (
            "the last characters of each plane",
            "".join(chr(plane << 16 | 0xFFFD) for plane in range(17)),
        ),
        ("noncharacters", "\ufffe\uffff\ufdd0\U0001ffff\U0010ffff"),
        ("private use", "\ue000\uf8ff\U000f0000"),
        ("a lone high surrogate", "a\ud83db"),
        ("a lone low surrogate", "a\ude00b"),
        ("surrogates in a pair", "\ud83d\ude00"),
        ("surrogates the wrong way round", "\ude00\ud83d"),
        ("emoji with joiners and skin tones", "👩‍🚀👩🏽‍🚀👨‍👩‍👧‍👦🏳️‍🌈🇩🇪❤️1️⃣"),
        ("flag of tags", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"),
        ("combining marks out of order", "a\u0301\u0316\u0334e\u0323\u0302"),
        (
            "composed and decomposed",
            "é e\u0301 ộ o\u0323\u0302 각 \u1100\u1161\u11a8 \u212b \u2126 \u212a",
        ),
        ("marks without a letter", "\u0301\u0344\u0f73\u0f75\u0f81"),
        ("a stack of marks", "z" + "\u0301\u0316\u0334\u0489" * 30),
        ("right to left", "\u202eabc\u202c \u200fשלום\u200e \u2067x\u2069"),
        ("zero width", "a\u200bb\u200cc\u200dd\u2060e\u00adf\u034fg\u180eh"),
        ("full width and half width", "ＡＢＣ１２３！（）～　ｶﾞｷﾞｸﾞ ﾡﾢ ￠￡￥￦"),
        ("ligatures", "ﬀ ﬁ ﬂ ﬃ ﬄ ﬅ ﬆ Ĳ ĳ ŉ Ǆ ǅ ǆ œ æ"),
        ("curly quotes", "“a” ‘b’ „c‟ ‚d‛ «e» ‹f› ʼg ′h″"),
        ("digits of other scripts", "١٢٣ १२३ １２３ 𝟏𝟐𝟑 Ⅷ ⅷ ½ ² ₂ ㊿ 〇 一二三"),
        ("letters of mathematics", "𝓐𝔅𝕮 𝒽𝑒𝓁𝓁𝑜 ℌ ℵ"),
        ("case that changes the length", "İ ı ẞ ß ŉ ΐ ﬃ Ⱥ Ⱦ Å K"),
        ("final sigma", "ΟΔΥΣΣΕΥΣ ΣΑΣ Σ ΑΣ\u0301 ΑΣ.Α ΑΣ'"),
        ("scripts without spaces", "これは写真です。这是一张照片。นี่คือภาพถ่าย"),
        (
            "new and unassigned letters",
            "\u1c89\u1c8a \ua7cb\ua7da \U00010d4a \U0001e5d0 \u0378 \U000e0fff",
        ),
    )


def _of_mojibake() -> tuple[tuple[str, str], ...]:
    def misread(text: str, *encodings: str) -> str:
        for encoding in encodings:
            text = text.encode().decode(encoding)
        return text

    return (
        ("UTF-8 read as Windows-1252", misread("café à la crème, naïve, 5 €", "cp1252")),
        ("and once more", misread("café", "cp1252", "cp1252")),
        ("and a third time", misread("é", "cp1252", "cp1252", "cp1252")),
        ("UTF-8 read as Latin-1", misread("Größe “groß” – 寸法", "latin-1")),
        ("UTF-8 read as MacRoman", misread("l’été", "mac_roman")),
        ("UTF-8 read as code page 437", misread("ñandú", "cp437")),
        ("UTF-8 read as Windows-1251", misread("привет", "latin-1")),
        ("mojibake amid other scripts", "一 cafÃ© 二 naÃ¯ve ✔ â€œquotedâ€\u009d"),
        ("no-break spaces lost", "voilÃ  le travail, Ã  demain"),
        ("bytes lost", "â€œ so â€\ufffd and Ã\ufffd"),
        ("surrogates in UTF-8", "í\xa0½í¸\x80 x"),
        ("a long zero", "À\x80 À\n"),
        ("at the end of a line", "caf\u00c3\na\u0153\nb \u00c3\u00a9\r\n\u00e2\u20ac\u2122"),
        ("UTF-8 read as two encodings", "Ã¼Ć\u00a0"),
        ("the same amid other scripts", "一 Ã¼Ć\u00a0 二"),
        ("MacRoman's dash before a space", "l√© – chips"),
        ("MacRoman's letter before a question mark", "l√© √?"),
        ("one repair after the other", "Â" * 50 + "©"),
        ("what only looks like mojibake", "Ã ÃÂ SÃO PAULO Å L’ÂME ÎLE ØÆ"),
        ("C1 control characters", "\x85 \x91quoted\x92 \x80 5\x96\x97 \x81\x8d"),
    )


def _of_html() -> tuple[tuple[str, str], ...]:
    return (
        ("entities", "&lt;b&gt; &amp; &eacute; &EACUTE; &Eacute; &nbsp; &hellip; &notin; &zwj;"),
        ("entities without a semicolon", "&amp &lt &copy2026 &notit; &eacutex &ampamp;"),
        ("entities escaped again", "&amp;amp;amp;lt; &amp;#38;amp;eacute; &#38;#38;#38;"),
        ("escaped forty times", "&" + "amp;" * 40 + "lt;"),
        (
            "entities by number",
            "&#233; &#xE9; &#XE9; &#0; &#128; &#x9f; &#xD83D; &#x10FFFF; &#x110000;",
        ),
        ("entities by long numbers", "&#00000000000000000000000000000233; &#99999999999999999999;"),
        ("entities that are no characters", "&#1; &#11; &#xFFFE; &#x1F; &#;&#x;&;&&"),
        ("entities of white space", "a&Tab;b&NewLine;c&#32;d&emsp;e&#x2028;f&#28;g"),
        ("entities that become mojibake", "&Atilde;&copy; &acirc;&euro;&trade; caf&#195;&#169;"),
        ("HTML's source", "<p>fish &amp;amp;amp;amp; chips</p>"),
        (
            "HTML's source from the second line on",
            "&amp;amp;amp;lt;\n<br>&amp;amp;amp;lt;\n&amp;amp;amp;lt;",
        ),
        ("terminal colours", "\x1b[31mred\x1b[0m \x1b[1;32;40mx \x1b[ \x1b]0;title\x07"),
    )


def _of_clips_own() -> tuple[tuple[str, str], ...]:
    return (
        ("special tokens", "<|startoftext|><|endoftext|> a<|startoftext|>b"),
        ("special tokens in odd case", "<|StartOfText|> <|ENDOFTEXT|>"),
        ("special tokens with a long s", "<|ſtartoftext|> <|ﬅartoftext|> <|endoftext|"),
        ("special tokens in full width", "＜｜ｓｔａｒｔｏｆｔｅｘｔ｜＞"),
        ("special tokens as entities", "&lt;|startoftext|&gt; &lt;|endoftext|>"),
        ("contractions", "it's he'll I'm they're we've don't I'd 's 'T 'LL 'rE o'clock 'sup 'ſ"),
        ("contractions with curls", "it’s he’ll I’m they’re we’ve don’t I’d"),
        ("letters and digits in a row", "abc123def４５６ghi٧٨٩jkl²m"),
        ("signs in a row", "!?#%&/()=...---___~~~^^^``'''\"\"\""),
        ("one letter in a row", "a aa aaa aaaa aaaaa aaaaaa aaaaaaa aaaaaaaa aaaaaaaaa"),
        ("the end of a word as text", "cat</w> </w> dog</w>s"),
    )


def _very_long() -> tuple[tuple[str, str], ...]:
    kinds = {
        "letters": "a",
        "letters of three bytes": "一",
        "letters of four bytes": "𠀀",
        "emoji": "😀",
        "marks": "\u0301",
        "marks that are two": "\u0344",
        "signs that are three": "\U0001d160",
        "ligatures that are three": "ﬃ",
        "digits": "7",
        "signs": "!",
        "spaces": " ",
        "lines": "\n",
        "no-break spaces": "\u00a0",
        "zeros": "\0",
        "joiners": "\u200d",
        "surrogates": "\ud800",
        "replacement characters": "\ufffd",
        "ampersands": "&",
        "angle brackets": "<",
        "C1 control characters": "\x81",
    }
    return (
        *((f"10,000 {name}", character * 10_000) for name, character in kinds.items()),
        ("5,000 words", "a " * 5_000),
        ("5,000 lines", "é\n" * 5_000),
        ("5,000 times mojibake", "Ã©" * 5_000),
        ("5,000 marks out of order", "a" + "\u0344" * 2_500 + "\u0f73" * 2_500),
        ("a word of 400 letters", "etaoinshrdlucmfwypvbgkjqxz" * 16),
    )
