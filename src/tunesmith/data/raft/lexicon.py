"""Lists of English words that the question templates go by."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NOT_NAMES = _words("""
    the a an this that these those it he she they we i you his her its their our my your there
    here in on at by for from with to of as if when while after before since during under over
    through although though because however moreover furthermore thus therefore also then later
    today now both each every some many most several few all any no one two three other others
    another such what who which where why how but and or so yet not only even just according
    despite unlike like among between within without until upon about above below behind beyond
    near next first second third finally instead additionally similarly meanwhile nowadays
    currently recently originally initially subsequently prior following based given using once
    perhaps nearby eventually early late further still again often sometimes generally usually
    typically finally overall together little much more less half part none neither either nor
    with new modern old local national january february march april june july august september
    october november december
    """)

PERSONAL = _words("""
    politician player engineer inventor physicist scientist mathematician writer author poet
    painter king queen emperor ruler leader justice ascetic disciple friar candidate investor
    senator bishop monk priest philosopher historian architect composer singer actor actress
    musician economist lawyer judge president minister governor founder chemist astronomer
    biologist professor teacher student artist sculptor explorer soldier commander officer
    nobleman duke prince princess theologian missionary reformer activist journalist critic
    scholar dancer director producer coach quarterback linebacker manager analyst programmer
    developer member doctor physician nurse surgeon merchant banker khan pope man woman boy girl
    son daughter brother sister wife husband cornerback safety receiver pilot mechanic linguist
    """)

HUMAN_VERBS = _words(
    "marry die study graduate teach write paint believe argue invent discover retire resign"
)

PLACED = _words("""
    located situated born held built founded buried established opened based headquartered signed
    published fought educated raised crowned executed imprisoned arrested killed live work die
    study settle graduate
    """)

THINGS = _words("""
    invent discover found win receive write publish establish introduce create produce study
    require export own design teach include comprise contain propose join capture defeat paint
    represent cause use influence replace need absorb mean describe regulate acquire purchase
    lack involve support recognize hire publish form kill destroy build export import lose host
    face measure demand abolish ban adopt announce offer oppose favor provide sign
    """)

STRANDED = _words("""
    consist:of depend:on lead:to result:in refer:to belong:to derive:from rely:on focus:on
    range:from composed:of made:of made:from divided:into known:for renowned:for famous:for
    derived:from associated:with based:on used:for used:as surrounded:by caused:by
    characterized:by covered:by connected:to replaced:by separated:from responsible:for
    named:after made:up+of influenced:by translated:into converted:into merged:with bordered:by
    related:to adjacent:to similar:to
    """)

LOOSE = _words("""
    win receive use sign announce lose write publish create introduce support offer need involve
    provide build study teach propose join capture adopt kill hire import export measure oppose
    """)
"""Verbs of THINGS that alone say too little to ask by."""

TYPES = _words("""
    theatre theater university museum river party company institute church council committee act
    treaty agreement war battle bridge park school college library society union army gallery
    street building palace stadium festival hospital airport station network channel magazine
    newspaper dynasty empire kingdom province region lake mountain island ocean sea desert
    championship tournament bank court canal castle cathedral center centre commission conference
    """)
