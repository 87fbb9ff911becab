"""Facts that everybody knows, against answers that are easily taken for right."""

from __future__ import annotations

import random
from typing import NamedTuple

from benchmarks.real.tasks.task import Row, parted

WRONG = 2  # wrong answers for a subject in a sentence, each a row of its own


class Relation(NamedTuple):
    """Sentences about a subject that its answer ends; ``new`` ones are in the test alone.

    ``answers`` are the right one and, behind it, wrong ones near by; where there are none, the
    answers of other subjects are wrong.
    """

    seen: tuple[str, ...]
    new: tuple[str, ...]
    answers: dict[str, list[str]]


def _table(text: str) -> dict[str, list[str]]:
    """Of ``subject:right/wrong/wrong`` entries between commas."""
    parts = (entry.strip().split(":") for entry in text.split(","))
    return {subject: answers.split("/") for subject, answers in parts}


RELATIONS = {
    "capital": Relation(
        ("The capital of {} is", "The government of {} sits in the city of"),
        ("The capital city of {} is called", "In {} the capital is", "The parliament of {} is in"),
        _table(
            "France:Paris/Marseille/Lyon, Italy:Rome/Milan/Naples, Spain:Madrid/Barcelona/Seville, "
            "Portugal:Lisbon/Porto/Braga, Germany:Berlin/Munich/Hamburg, "
            "Austria:Vienna/Salzburg/Graz, Poland:Warsaw/Krakow/Gdansk, "
            "Hungary:Budapest/Debrecen/Szeged, Greece:Athens/Thessaloniki/Patras, "
            "Norway:Oslo/Bergen/Trondheim, Sweden:Stockholm/Gothenburg/Malmo, "
            "Finland:Helsinki/Turku/Tampere, Denmark:Copenhagen/Aarhus/Odense, "
            "Ireland:Dublin/Cork/Galway, Belgium:Brussels/Antwerp/Ghent, "
            "Russia:Moscow/Saint Petersburg/Kazan, Ukraine:Kyiv/Odessa/Kharkiv, "
            "Romania:Bucharest/Cluj/Timisoara, Bulgaria:Sofia/Varna/Plovdiv, "
            "Croatia:Zagreb/Split/Dubrovnik, Turkey:Ankara/Istanbul/Izmir, "
            "Egypt:Cairo/Alexandria/Luxor, Kenya:Nairobi/Mombasa/Kisumu, "
            "Nigeria:Abuja/Lagos/Kano, Morocco:Rabat/Casablanca/Marrakesh, "
            "Algeria:Algiers/Oran/Constantine, Ghana:Accra/Kumasi/Tamale, "
            "Japan:Tokyo/Osaka/Kyoto, China:Beijing/Shanghai/Hong Kong, "
            "India:New Delhi/Mumbai/Calcutta, Pakistan:Islamabad/Karachi/Lahore, "
            "Vietnam:Hanoi/Ho Chi Minh City/Da Nang, Thailand:Bangkok/Chiang Mai/Phuket, "
            "Iran:Tehran/Isfahan/Shiraz, Iraq:Baghdad/Basra/Mosul, Syria:Damascus/Aleppo/Homs, "
            "Kazakhstan:Astana/Almaty/Shymkent, Myanmar:Naypyidaw/Yangon/Mandalay, "
            "Australia:Canberra/Sydney/Melbourne, New Zealand:Wellington/Auckland/Christchurch, "
            "Canada:Ottawa/Toronto/Montreal, Mexico:Mexico City/Guadalajara/Monterrey, "
            "Brazil:Brasilia/Rio de Janeiro/Sao Paulo, Argentina:Buenos Aires/Cordoba/Rosario, "
            "Chile:Santiago/Valparaiso/Concepcion, Peru:Lima/Cusco/Arequipa, "
            "Colombia:Bogota/Medellin/Cali, Ecuador:Quito/Guayaquil/Cuenca, "
            "Venezuela:Caracas/Maracaibo/Valencia, Cuba:Havana/Santiago de Cuba/Camaguey, "
            "Scotland:Edinburgh/Glasgow/Aberdeen, Wales:Cardiff/Swansea/Newport, "
            "Switzerland:Bern/Zurich/Geneva, Israel:Jerusalem/Tel Aviv/Haifa, "
            "Tanzania:Dodoma/Dar es Salaam/Arusha, Ivory Coast:Yamoussoukro/Abidjan/Bouake, "
            "Saudi Arabia:Riyadh/Jeddah/Mecca, Ethiopia:Addis Ababa/Gondar/Mekelle, "
            "the United States:Washington/New York/Los Angeles, "
            "the United Arab Emirates:Abu Dhabi/Dubai/Sharjah"
        ),
    ),
    "symbol": Relation(
        ("The chemical symbol of {} is", "In the periodic table {} is written as"),
        ("Chemists write {} as", "The element {} has the symbol", "The short sign for {} is"),
        _table(
            "hydrogen:H/Hy/Hg, helium:He/H/Hm, lithium:Li/L/Lt, carbon:C/Ca/Co, nitrogen:N/Ni/Na, "
            "oxygen:O/Ox/Os, fluorine:F/Fl/Fe, neon:Ne/N/Nn, sodium:Na/S/So, magnesium:Mg/Mn/Ma, "
            "aluminium:Al/Am/Au, silicon:Si/S/Sc, phosphorus:P/Ph/Po, sulfur:S/Su/Sf, "
            "chlorine:Cl/C/Ch, argon:Ar/Ag/Ao, potassium:K/P/Po, calcium:Ca/C/Cm, "
            "titanium:Ti/T/Tn, chromium:Cr/Ch/Cm, iron:Fe/I/Ir, cobalt:Co/C/Cb, nickel:Ni/N/Nk, "
            "copper:Cu/Co/Cp, zinc:Zn/Z/Zi, bromine:Br/B/Bm, silver:Ag/Si/Sv, tin:Sn/T/Ti, "
            "iodine:I/Io/Id, gold:Au/Go/Gd, mercury:Hg/Me/Mc, lead:Pb/Le/Ld, uranium:U/Ur/Um, "
            "radium:Ra/R/Rd, platinum:Pt/P/Pl, barium:Ba/B/Bm, tungsten:W/Tu/Tg, "
            "arsenic:As/Ar/An, manganese:Mn/Mg/Ma, plutonium:Pu/P/Pl"
        ),
    ),
    "opposite": Relation(
        ("The opposite of {} is", "If something is not {}, it is"),
        ("The word {} has the opposite", "What is the contrary of {}? It is", "Not {} but"),
        _table(
            "hot:cold, big:small, tall:short, old:new, fast:slow, rich:poor, heavy:light, "
            "hard:soft, full:empty, open:closed, wet:dry, early:late, high:low, strong:weak, "
            "young:old, clean:dirty, thick:thin, wide:narrow, deep:shallow, happy:sad, "
            "sweet:sour, right:wrong, near:far, true:false, cheap:expensive, easy:difficult, "
            "safe:dangerous, first:last, rough:smooth, brave:cowardly, polite:rude, "
            "lazy:diligent, modern:ancient, public:private"
        ),
    ),
    "past": Relation(
        ("Today I {0}, yesterday I", "The past tense of {0} is"),
        ("Every day they {0}. Last year they", "In the past, {0} becomes", "We {0} now as we once"),
        _table(
            "go:went/goed/gone, eat:ate/eated/eaten, see:saw/seed/seen, take:took/taked/taken, "
            "give:gave/gived/given, write:wrote/writed/written, speak:spoke/speaked/spoken, "
            "drive:drove/drived/driven, sing:sang/singed/sung, swim:swam/swimmed/swum, "
            "run:ran/runned/running, begin:began/beginned/begun, drink:drank/drinked/drunk, "
            "know:knew/knowed/known, grow:grew/growed/grown, fly:flew/flied/flown, "
            "draw:drew/drawed/drawn, throw:threw/throwed/thrown, ring:rang/ringed/rung, "
            "choose:chose/choosed/chosen, forget:forgot/forgetted/forgotten, "
            "break:broke/breaked/broken, fall:fell/falled/fallen, freeze:froze/freezed/frozen, "
            "hide:hid/hided/hidden, ride:rode/rided/ridden, rise:rose/rised/risen, "
            "shake:shook/shaked/shaken, steal:stole/stealed/stolen, tear:tore/teared/torn, "
            "wear:wore/weared/worn, wake:woke/waked/woken, blow:blew/blowed/blown, "
            "bite:bit/bited/bitten, sink:sank/sinked/sunk, swear:swore/sweared/sworn"
        ),
    ),
}


def fact_rows(part: str) -> list[Row]:
    """Sentences with the right answer and a wrong one.

    A subject is in one part only; the test has sentences of its own.
    """
    rows = []
    for name, relation in RELATIONS.items():
        rng = random.Random(f"facts {name} {part}")
        known = sorted({right for right, *_ in relation.answers.values()})
        for subject in parted(f"facts {name}", list(relation.answers))[part]:
            right, *near = relation.answers[subject]
            for sentence in relation.new if part == "test" else relation.seen:
                wrong = near or rng.sample([other for other in known if other != right], WRONG)
                rows += [Row(sentence.format(subject), f" {right}", f" {w}") for w in wrong]
    return rows
