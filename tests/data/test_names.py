"""What names say, in a table of spellings: left and right, CT and MR."""

import pytest

from diffuseg.data.names import is_ct, is_mr, is_xray, side, tells_sides

PAIRS = (
    ("left_tumor", "right_tumor"), ("LeftTumor", "RightTumor"), ("tumorL", "tumorR"), ("tumor1L", "tumor2R"),
    ("lesion_lt", "lesion_rt"), ("lesion_links", "lesion_rechts"), ("tumeur_gauche", "tumeur_droite"),
    ("lesion_sin", "lesion_dex"), ("cyst-left", "cyst-right"), ("leftsided lesion", "rightsided lesion"),
    ("tumor-L", "tumor-R"),
    ("tumor.l", "tumor.r"), ("L tumor", "R tumor"), ("LungTumorLHS", "LungTumorRHS"), ("lefttumor", "righttumor"),
    ("LTumor", "RTumor"), ("tumor_L1", "tumor_R1"), ("tumorLeft", "tumorRight"), ("lLesion", "rLesion"),
    ("LESION_L", "LESION_R"),
    ("TUMOR_LEFT", "TUMORRIGHT"), ("Kidney (L)", "Kidney (R)"), ("ctx-lh-tumor", "ctx-rh-tumor"),
    ("linke Zyste", "rechte Zyste"),
    ("Ltumor", "Rtumor"), ("kidneyl", "kidneyr"), ("\u5de6\u80ba", "\u53f3\u80ba"),
    ("VENSTRE cyste", "H\u00d8YRE cyste"),
    ("\u043b\u0435\u0432\u0430\u044f", "\u043f\u0440\u0430\u0432\u0430\u044f"),
    ("n\u00f3dulo izquierdo", "n\u00f3dulo derecho"), ("nodule gauche", "nodule droit"), ("lesione sinistra", "lesione destra"),
    ("cisto_esquerdo", "cisto_direito"), ("LK_tumor", "RK_tumor"), ("tumor_sinister", "tumor_dexter"),
    ("LEFTtumor", "RIGHTtumor"),
    ("HIPPO_L", "HIPPO_R"), ("hippoL", "hippoR"), ("linkernier", "rechternier"), ("femur_sin", "femur_dext"),
    ("balra", "jobbra"), ("αριστερό νεφρό", "δεξί νεφρό"), ("ляв", "десен"), ("أيسر", "أيمن"), ("שמאל", "ימין"),
    ("ซ้าย", "ขวา"), ("बायां", "दायां"), ("좌측", "우측"),
)  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_left_and_right_are_seen_in_every_spelling(pair):
    assert [side(name) for name in pair] == ["left", "right"]


@pytest.mark.parametrize(
    "pair",
    [("niere_li", "niere_re"), ("ovaio sx", "ovaio dx"), ("maculaOS", "maculaOD"), ("ear-AS", "ear-AD"), ("Lvent", "Rvent"),
     ("st\u00e2nga", "dreapta"), ("lev\u00e1 plice", "prav\u00e1 plice"), ("vasen", "oikea"), ("auricle_l1", "auricle_r1")],
    ids=lambda pair: pair[0],
)  # fmt: skip
def test_two_names_that_differ_in_their_side_alone_tell_it(pair):
    assert tells_sides(["core", *pair]) == list(pair)


def test_two_names_that_differ_in_something_else_do_not():
    names = ["core", "edge", "tumor 1", "tumor 2", "Anterior", "Posterior", "cyst a", "cyst b", "grade s"]
    assert tells_sides(names) == []


@pytest.mark.parametrize(
    "name",
    [
        "tumor",
        "lesion",
        "liver lesion",
        "polyp",
        "sinus",
        "large cyst",
        "tumor_2",
        "renal tumor",
        "Lymphnode",
        "core",
        "bright lesion",
        "upright",
        "cleft lesion",
        "leftover",
    ],
)
def test_no_side_is_seen_where_there_is_none(name):
    assert side(name) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((n, "ct") for n in ("CT", "ct_art", "CTscan", "CT1", "ct-hu", "CT_scan", "NCCT", "HU", "abdomenCT", "low dose CT",
                           "computed tomography", "Computed_Tomography", "tomograf\u00eda computarizada", "CTportal", "CTPA",
                           "CTA", "4DCT", "TAC torax", "tc_abdome", "КТ")),
     *((n, "mr") for n in ("T1", "T1w", "T1_Gd", "t2f", "FLAIR", "mri", "MR0", "T2star", "DWI b1000", "brainMRI", "T1c",
                           "T1POST", "T2WI", "t2_tse", "MP2RAGE", "CT from MR")),
     *((n, "xray") for n in ("X-ray", "chestXray", "CXR", "x_ray")),
     *((n, "") for n in ("Contrast", "actin", "direct", "grey", "red", "PET/CT", "SPECT/CT", "OCT", "section", "Tc-99m", "T",
                             "single photon emission computed tomography"))],
)  # fmt: skip
def test_what_a_picture_was_taken_with_is_a_word_of_its_channel(name, kind):
    assert {"ct": is_ct(name), "mr": is_mr(name), "xray": is_xray(name)} == {k: k == kind for k in ("ct", "mr", "xray")}
