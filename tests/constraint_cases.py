"""Answers judged by hand: kind of constraint, kwargs, what follows it, what does not."""

from __future__ import annotations

from typing import Any

FIVE = {"relation": "at least", "num_words": 5}
UNDER_FIVE = {"relation": "less than", "num_words": 5}
LONG_ENGLISH = "the weather was cold this morning, so we stayed at home and read books by the fire."
GERMAN = "heute morgen war es kalt, deshalb sind wir zu hause geblieben und haben bücher gelesen."
ASKED = "Write a poem about rain, please."

Case = tuple[str, dict[str, Any], list[str], list[str]]

CASES: list[Case] = [
    (
        "keywords:existence",
        {"keywords": ["sneaker", "C++"]},
        ["My SNEAKER knows c++.", "Sneakers, and C++14 too", "**sneaker** `C++`\n"],
        ["", "Only sneakers here.", "C++ and sne aker", "sneaker and C+"],
    ),
    (
        "keywords:frequency",
        {"keyword": "rain", "relation": "at least", "frequency": 2},
        ["Rain, rain.", "It rains in rainy weather.", "RAIN\nrain\nrain"],
        ["", "Rain once.", "ra in rai n", "sun and snow"],
    ),
    (
        "keywords:frequency",
        {"keyword": "rain", "relation": "less than", "frequency": 2},
        ["Dry.", "Rain once.", "A train."],
        ["", "Rain, rain.", "trains and brains", "rain rain rain"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["can", "naïve"]},
        ["A canoe and a toucan.", "We could.", "A naïveté of theirs."],
        ["", "We can.", "CAN-do spirit", "So Naïve!", "**can**"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_relation": "at least", "let_frequency": 3},
        ["Eleven", "three eggs", "e-E-e"],
        ["", "Elf", "two e's, e", "ééé"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_relation": "less than", "let_frequency": 2},
        ["No such sign.", "# One", "C# only"],
        ["", "##", "# One\n# Two", "#a #b"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        [GERMAN, GERMAN.upper(), "# Titel\n\n* Das ist der erste Punkt dieser kurzen Liste."],
        ["", LONG_ENGLISH, "12345", "Il fait très froid ce matin et nous restons à la maison."],
    ),
    (
        "language:response_language",
        {"language": "hi"},
        [
            "आज सुबह बहुत ठंड थी और हम घर पर ही रहे।",
            "मुझे किताबें पढ़ना बहुत अच्छा लगता है।",
            "**यह एक छोटी सी कहानी है।**",
        ],
        ["", LONG_ENGLISH, "আজ সকালে খুব ঠান্ডা ছিল।", "आज सकाळी खूप थंडी होती आणि आम्ही घरीच राहिलो."],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 3},
        ["One. Two! Three?", "Dr. May came. She sat. We ate.", "一。二！三？", "a\n\nb\n\nc"],
        ["", "One. Two.", "Dr. A. B. May paid $3.50, i.e. much. Good.", "Wait... what? ... !"],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        ["One.", "One. Two.", "At 5 p.m. we met Mr. and Mrs. Hill in St. Louis. Fine.", "No end"],
        ["", "One. Two. Three.", "Hm! Hm! Hm!", "one. two. three and more."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One.\n***\nTwo.", "One. *** Two.", "***\nOne.\n\nStill one.\n***\nTwo.\n***"],
        ["", "One.\n\nTwo.", "One.\n***\n***\nTwo.", "One ***bold*** word.", "A\n***\nB\n***\nC"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 3},
        ["A\n***\nB\n***\nC", "***\nA *** B *** C", "A\n\n***\n\nB ***b***\n***\nC\n"],
        ["", "A ***b*** c", "A\n***\n***\nB", "A\n****\nB\n****\nC"],
    ),
    (
        "length_constraints:number_words",
        FIVE,
        ["one two three four five", "Well-known facts don't (lie).", "एक दो तीन चार पाँच"],
        ["", "one two three four", "- - - - - one", "don't won't"],
    ),
    (
        "length_constraints:number_words",
        UNDER_FIVE,
        ["one two three four", "**One** — two", "हिन्दी में लिखा"],
        ["", "one two three four five", "a-b-c-d-e", "It's Ann's dog"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "summary"},
        ["A.\n\nSummary: b.\n\nC.", 'A.\n\n"Summary" b.\n\nC.', "\n\nA\n \nSUMMARY, b\n\n\n\nC\n"],
        [
            "",
            "A.\n\nThe summary.\n\nC.",
            "A.\n\nSummary.",
            "Summary.\n\nA.\n\nB.",
            "A.\n\nSummaryless.\n\nC.",
            "A\nSummary\nC",
            "A\n\n**Summary** b\n\nC",
        ],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name], at [address]", "[a][b][c]", "* [your name]\n* [your città]"],
        ["", "Dear [name].", "[] and [ ]", "[a\nb] [c]", "(name) {address}"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\n\nP.S. Call me.", "Help. p. s. I will", "**P.S.** Yes", "Bye\nP.S.: Yes"],
        ["", "Bye.", "Bye.\nP.P.S. Call me.", "Bye.\nP. P. S. Call me.", "Bye.\nP.S.", "PS call"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S. Call.", "Bye.\nP.P.S call", "_p. p. s._ Yes"],
        ["", "Bye.\nP.S. Call.", "Bye.\nPPS Call.", "P.P.S"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* One\n* Two", "Look:\n  - One\n  - Two\nDone.", "* One\n- Two\n* * *\n***\n---\n"],
        ["", "* One", "- 1\n- 2\n- 3", "*One* two\n**Three**", "1. One\n2. Two", "• One\n• Two"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "  My answer is no.\n", "Hm. My answer is maybe. Who knows?"],
        ["", "Yes.", "my answer is yes", "My answer is yes. My answer is no.", "My answer is yes"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*One* and *two parts*", "**One**, *two*", "* *One*\n* **zwei Köpfe**", "***a*** *b*"],
        ["", "*One*", "* One\n* Two", "** ** and **", "*one\ntwo* *three*", "2 * 3 * 4 * 5"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        [
            "Section 1\na\nSection 2\nb",
            "## Section 1: a\n## Section 2: b",
            "**Section 1**\n Section 12",
        ],
        [
            "",
            "Section 1\na",
            "SECTION 1\nSECTION 2",
            "Section A\nSection B",
            "See Section 1, Section 2",
        ],
    ),
    (
        "detectable_format:json_format",
        {},
        [
            '{"a": [1, 2]}',
            '```json\n{"a": "ü"}\n```',
            " [1]\n",
            "```\n[]\n```",
            '```JSON {"a": 1}```',
        ],
        [
            "",
            "Here: {}",
            "{'a': 1}",
            '{"a": 1,}',
            '{"a": NaN}',
            "```json\n```",
            "```python\n{}\n```",
        ],
    ),
    (
        "detectable_format:title",
        {},
        ["<<Rain>>\nText", "Text\n**<<The Länd of rain>>**", "<< a > b >>"],
        ["", "<Rain>", "<<>>", "<<  >>", "<<Rain\nfall>>", "«Rain»"],
    ),
    (
        "combination:two_responses",
        {},
        ["One ****** Two", "One\n******\nTwo", "******\nOne\n******\nTwo\n******"],
        [
            "",
            "One",
            "One ****** One",
            "A ****** B ****** C",
            "A ***** B",
            "A ****** ****** B",
            "A *******B",
        ],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": ASKED + " "},
        [ASKED + "\n\nDrops fall.", "  " + ASKED.upper() + " Drops.", ASKED],
        [
            "",
            "Drops fall.",
            "Sure! " + ASKED,
            "Write a poem about rain. Drops.",
            f'"{ASKED}" Drops.',
        ],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Is there anything else?"},
        [
            "Hi. Is there anything else?",
            '"Hi. is there ANYTHING else?" \n',
            "Is there anything else?",
        ],
        [
            "",
            "Is there anything else? Yes.",
            "Is there anything",
            "**Hi. Is there anything else?**",
        ],
    ),
    (
        "startend:quotation",
        {},
        ['"Hello."', ' "A\n\nB, and “c”" \n', "“Grüße.”"],
        ["", '"', '""', '"  "', '"Hello." she said', "'Hello.'", 'He said "hello"', "Hello"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        ["NASA and ESA", "I AM here", "**COVID-19** IS back", "ÜBER ALLE"],
        ["", "NASA only", "DON'T", "Nasa And Esa", "COVID-19 and AI-based", "123 456"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "less than", "capital_frequency": 2},
        ["none here", "NASA only", "Title Case Words"],
        ["", "NASA and ESA", "I SEE", "U.S. AND UK"],
    ),
    (
        "change_case:english_capital",
        {},
        [
            LONG_ENGLISH.upper(),
            "HELLO WORLD, THIS IS A TEST OF 3 THINGS!",
            "**THIS IS THE TITLE OF A BOOK.**",
        ],
        ["", LONG_ENGLISH, GERMAN.upper(), "THIS IS aLMOST ALL CAPITALS, EXCEPT ONE.", "123"],
    ),
    (
        "change_case:english_lowercase",
        {},
        [
            LONG_ENGLISH,
            "* this is the first of 3 points.\n* this is another one.",
            "i don't think so, my friend.",
        ],
        [
            "",
            LONG_ENGLISH.upper(),
            LONG_ENGLISH.capitalize(),
            GERMAN,
            "this is almost it, Really.",
            "123",
        ],
    ),
    (
        "punctuation:no_comma",
        {},
        ["No such sign; none.", "a\nb", "it’s ‚low‘ and fine"],
        ["", "One, two", "1,000", "你好，世界", "أهلا، وسهلا"],
    ),
]
