"""Codes of currencies (ISO 4217) and countries (ISO 3166-1 alpha-2). Codes are facts; the lists are written out here.

Countries as in the IANA time zone database (public domain, `iso3166.tab`); currencies as Unicode CLDR has them in use
(read from Babel 2.18), with SVC, which ISO 4217 still lists. XTS (testing) and XXX (no currency) are left out on
purpose: neither can be the currency of a payment.
"""

_ACTIVE_CURRENCIES = """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF
    CHE CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD
    GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP
    LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB
    PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS
    TMT TND TOP TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XAG XAU XBA XBB XBC XBD
    XCD XCG XDR XOF XPD XPF XPT XSU XUA YER ZAR ZMW ZWG
"""
# Withdrawn since 2010: historical data still carry them.
_WITHDRAWN_CURRENCIES = "ANG BYR CUC EEK HRK LTL LVL MRO SLL STD TMM VEF ZMK ZWL"
# XK is no ISO code, but payment schemes use it for Kosovo (user-assigned range).
_COUNTRIES = """
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY
    BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK
    FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR
    IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK
    ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM
    PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF
    TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
    XK
"""

CURRENCIES = frozenset(_ACTIVE_CURRENCIES.split()) | frozenset(_WITHDRAWN_CURRENCIES.split())
COUNTRIES = frozenset(_COUNTRIES.split())
# Decimal places of a currency's minor unit, where they are not two (ISO 4217, list one). Units without one (gold,
# testing) are left out: any number of places is right for them.
_NO_MINOR_UNIT = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE_PLACES = "BHD IQD JOD KWD LYD OMR TND"
_FOUR_PLACES = "CLF UYW"
_ANY_PLACES = "XAG XAU XBA XBB XBC XBD XDR XPD XPT XSU XUA"

MINOR_UNITS = (
    dict.fromkeys(sorted(CURRENCIES - set(_ANY_PLACES.split())), 2)
    | dict.fromkeys(_NO_MINOR_UNIT.split(), 0)
    | dict.fromkeys(_THREE_PLACES.split(), 3)
    | dict.fromkeys(_FOUR_PLACES.split(), 4)
)
