"""Normalise the wording of a judge's verdict: other names, languages and number formats become the usual ones.

Invariants:
- Only words and number formats change, never which number belongs to which assistant.
- A text in the usual form is returned unchanged.

The usual form is that of `score_parser`: "Assistant 1", "score", "/10", ASCII digits with a decimal point.
"""

from __future__ import annotations

import re
import unicodedata

MARK = r"(?:scores?|ratings?|grades?|marks?)"

_DIGIT = re.compile(r"(?![0-9])\d")
_WIDE = str.maketrans(dict(zip("：／，；（）［］．｜＝％＃－", ":/,;()[].|=%#-", strict=True)) | {"٫": ".", "،": ","})

_ASSISTANT = (
    r"assistants?|assistent(?:en|in|e)?|asistente|assistente|asystent\w{0,3}|asistan|asisten|ассистент\w{0,3}|"
    r"помощник\w{0,3}|trợ lý|المساعد|मददगार|सहायक|助手|助理|アシスタント|어시스턴트|조수|"
    r"responses?|answers?|models?|candidates?|submissions?|outputs?|repl(?:y|ies)|systems?|options?|(?:chat)?bots?|"
    r"antwort|modell|respuesta|réponse|resposta|risposta|modelo|modèle|ответ\w{0,2}|модел\w{0,2}|odpowiedź|cevap|yanıt|"
    r"回答|答案|回复|回覆|模型|応答|モデル|답변|응답|모델|الإجابة|الرد|उत्तर|câu trả lời"
)
_ONE = r"1|A|[Oo]ne|一|①|Ⅰ"
_TWO = r"2|B|[Tt]wo|二|②|Ⅱ"
_THIRD = re.compile(rf"(?<![^\W_])(?:{_ASSISTANT})[ _]?[#-]? ?(?:(?-i:C)|3|three|三)(?![A-Za-z0-9])", re.IGNORECASE)
_NAMED = re.compile(
    rf"(?<![^\W_])(?:AI )?(?:{_ASSISTANT})[ _]?(?:nr\.?|no\.?|n[°ºo]\.?|number|#|№|-)? ?[(\[]?"
    rf"(?:(?-i:({_ONE}))|(?-i:({_TWO})))[)\]]?(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_ORDINAL = re.compile(
    r"(?:\b(?:the )?(?:(first|1st)|(second|2nd)) (?:AI )?|第(?:(一|1)|(二|2))(?:个|位|個|の)?)"
    rf"(?:{_ASSISTANT})(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"(?:^|(?<=[,;|] )|(?<=\n))(?:(?:[Ss]core|[Rr]ating) ?(?:of |for )?)?[(\[]?(?:(A)|(B))[)\]]?"
    r"(?= ?[:=] ?[0-9]| \| \**[0-9])"
)
_NUMBERED = re.compile(r"(?:^|(?<=[,; ])|(?<=\n))(?:#|(?:[Ss]core|[Rr]ating)[ _]?#?)([12])(?= ?[:=] ?[0-9])")
_BRACKETED = re.compile(r"\[\[([0-9]{1,2}(?:\.[0-9]{1,2})?)\]\]")
_IN_BRACKETS = re.compile(r"(\bassistant [12]) ?\(([0-9]{1,2}(?:\.[0-9]{1,2})?/10)\)", re.IGNORECASE)

_SCORE = re.compile(
    r"(?:总|最终)?(?:得分|评分|分数|打分|評分|分數)|総合|スコア|得点|評価|点数|점수|평점|"
    r"\b(?:gesamt)?(?:punktzahl|bewertung|wertung)\b|\b(?:puntuaci[oó]n|puntaje|calificaci[oó]n|punteggio|voto|"
    r"valutazione|pontuaç[aã]o|nota|note|оценк[аи]|балл\w{0,3}(?= (?:для|за|у|assistant))|ocena|wynik|puanı?|"
    r"điểm(?: số)?|skor|nilai)\b|"
    r"الدرجة|درجة|النتيجة|अंक|स्कोर",
    re.IGNORECASE,
)
_OF = re.compile(
    r"\bscore ?(?:of|for|的|の|의|von|des|der|für|de l['’]|de la|de|del|du|dell['’]|della|di|do|da|para|pour|per|для|"
    r"за|у|dla|của|cho)? ?(?:the )?(?=assistant [12]\b)",
    re.IGNORECASE,
)
_POSSESSIVE = re.compile(r"(\bassistant [12]) ?(?:的|の|의)? ?(?=score\b|: ?score\b)", re.IGNORECASE)
_GETS = re.compile(
    r"(\bassistant [12](?: score)?) ?,? ?(?:erhält|bekommt|ist|obtient|reçoit|est|recibe|obtiene|es|riceve|ottiene|è|"
    r"recebe|obtém|é|получает|otrzymuje|alır|là|được|获得|獲得|得到|得|是|为|為|は|が|은|는|이|가)"
    r"(?: (?:eine?n?|une?|una|um|uma|il|la|le))? ?(?:score)? ?(?:von|de|di|:)? ?(?=[0-9])",
    re.IGNORECASE,
)
_OF_TEN = re.compile(r"(?<=[0-9]) ?(?:sur|von|de|su|из|z|trên|中|満点中) ?10\b", re.IGNORECASE)
_POINTS = re.compile(
    r"(?<=[0-9]) ?(?:分|点|點|점|punkten?|puntos?|punti|pontos?|балл\w{0,3}|punkt\w{0,3}|puan|điểm|نقاط|अंक)"
    r"(?![A-Za-z])",
    re.IGNORECASE,
)
_FULL_MARKS = re.compile(r"[(（]?(?:满分|滿分)(?:为|是|為)? ?10 ?分?[)）]?,?|10 ?(?:点満点中?|점 만점에?)")
_COMMA = re.compile(r"(?<=[:=] )([0-9]{1,2}),([0-9])(?![0-9,]|\.[0-9])|(?<=[:=])([0-9]{1,2}),([0-9])(?![0-9,]|\.[0-9])")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_IN_WORDS = re.compile(rf"(?<=[:=] )({'|'.join(_WORDS)})\b(?! [a-z]+ [a-z])|(?<=score of )({'|'.join(_WORDS)})\b", re.I)
_HAN = "零一二三四五六七八九十"
_IN_HAN = re.compile(rf"(?<![{_HAN}])([{_HAN}])(?= ?分)")
_BREAK = re.compile(r"<br ?/?>", re.IGNORECASE)
_BOXED = re.compile(r"\$?\\boxed\{([^{}\n]{0,60})\}\$?")

_SIZE = r"(?P<size>[0-9]{1,3}|three|four|five|six|seven|eight|nine|ten|twenty|hundred)"
_SIZES = {"three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9} | {
    "ten": 10,
    "twenty": 20,
    "hundred": 100,
}
_RANGE = r"(?:from )?(?:(?:0|1|zero|one) ?(?:to|-|–|—|through|until|bis|a|al|à|до|do|至|到|から|~|～) ?)?"
_SCALES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:scale|skala|escala|échelle|scala|шкал\w)\b ?(?:of|is|:|from|von|de|del|da|di|от)? ?"
        rf"\(?{_RANGE}{_SIZE}\b(?!\.[0-9])",
        rf"\b{_SIZE}[- ](?:points?|stars?|grade)[- ](?:scale|system|rating)",
        rf"\b{MARK}\b[^.\n0-9]{{0,20}}\((?:[01] ?(?:to|-|–|—) ?|out of |of |max\.? |/ ?){_SIZE}\)",
        rf"\b{MARK}\b ?(?:are |is )?(?:given )?(?:out of|max(?:imum)?(?: is| of)?:?) ?{_SIZE}\b",
        rf"\b(?:max(?:imum)?|highest|best|top) (?:possible )?{MARK} ?(?:is|=|:|of) ?{_SIZE}\b",
        r"(?:满分|滿分)(?:为|是|為)? ?(?P<size>[0-9]{1,3})",
        r"(?P<size>[0-9]{1,3}) ?(?:分制|分満点|点満点|점 만점)",
    )
]
_SAYS_TEN = re.compile(r"(?:/ ?|out of |to |[01] ?[-–—] ?)10\b")


def plain_text(text: str) -> str:
    """Convert digits of any script and wide punctuation to ASCII, and HTML line breaks to newlines."""
    text = _BREAK.sub("\n", text)
    if text.isascii():
        return text
    return _DIGIT.sub(lambda match: str(unicodedata.digit(match[0])), text).translate(_WIDE)


def on_another_scale(text: str) -> bool:
    """Whether the judge names a scale that does not end at ten and marks nothing "/10"."""
    sizes = [match["size"].lower() for pattern in _SCALES for match in pattern.finditer(text)]
    other = any((_SIZES.get(size) or int(size)) != 10 for size in sizes)
    return other and not _SAYS_TEN.search(text)


def usual_numbers(text: str) -> str:
    """Convert decimal commas in scores to points, and numbers in words to digits."""
    text = _BRACKETED.sub(r"\1", text)
    text = _COMMA.sub(lambda match: f"{match[1] or match[3]}.{match[2] or match[4]}", text)
    return _IN_WORDS.sub(lambda match: str(_WORDS.index((match[1] or match[2]).lower())), text)


def usual_words(text: str) -> str:
    """Convert other names of the two assistants, and words for "score" in other languages, to the usual ones."""
    text = _BOXED.sub(r"\1", text)
    text = _IN_HAN.sub(lambda match: str(_HAN.index(match[1])), text)
    text = _FULL_MARKS.sub("", text)
    if _THIRD.search(text):
        return text  # three or more assistants: it is unknown which two are meant
    text = _NAMED.sub(lambda match: f"Assistant {1 if match[1] else 2}", text)
    text = _ORDINAL.sub(lambda match: f"Assistant {1 if match[1] or match[3] else 2}", text)
    text = _LETTER.sub(lambda match: f"Assistant {1 if match[1] else 2}", text)
    text = _NUMBERED.sub(r"Assistant \1", text)
    text = _OF_TEN.sub("/10", text)
    text = _IN_BRACKETS.sub(r"\1: \2", text)
    text = _POINTS.sub("", text)
    text = _SCORE.sub(" score", text)
    text = _OF.sub("score of ", text)
    text = _POSSESSIVE.sub(r"\1 ", text)
    text = _GETS.sub(r"\1: ", text)
    return usual_numbers(text)
