"""A structured report (TID 1500, Comprehensive 3D SR) of volumes and their intervals, which refers to the segmentation."""

from collections.abc import Mapping
from typing import Any

from diffuseg.data.dicom_files import EXTRA
from diffuseg.errors import UserError
from diffuseg.inference.calibration import is_raw
from diffuseg.inference.dicom_codes import Code, codes_of
from diffuseg.inference.prediction import Prediction

# No code of a public scheme says "end of the 90 % interval of a volume": these are of a private one, as the standard allows.
SCHEME = "99DIFFUSEG"
LOWER = ("VOLUME90LOW", SCHEME, "Volume, lower end of the 90 % interval")
UPPER = ("VOLUME90HIGH", SCHEME, "Volume, upper end of the 90 % interval")
RAW_LOWER = ("VOLUME90LOWRAW", SCHEME, "Volume, lower end of the 90 % interval, not calibrated")
RAW_UPPER = ("VOLUME90HIGHRAW", SCHEME, "Volume, upper end of the 90 % interval, not calibrated")
VOLUME = ("118565006", "SCT", "Volume")
MILLILITRE = ("ml", "UCUM", "ml")
PROCEDURES = {  # LOINC, by modality
    "CT": ("25045-6", "LN", "CT unspecified body region"),
    "MR": ("25056-3", "LN", "MRI unspecified body region"),
    "PT": ("44136-0", "LN", "PET unspecified body region"),
}
IMAGING = ("363679005", "SCT", "Imaging procedure")
MAKER = {"manufacturer": "diffuseg", "manufacturer_model_name": "diffuseg", "device_serial_number": "none"}


def highdicom() -> Any:
    """The library that writes segmentations.

    Raises:
        UserError: It is not installed; the message names the extra.
    """
    try:
        import highdicom
        import highdicom.seg
        import highdicom.sr
    except ImportError:
        raise UserError("writing DICOM needs highdicom", do=EXTRA) from None
    return highdicom


def volume_report(
    prediction: Prediction, headers: list[Any], segmentation: Any, names: list[str], codes: Mapping[str, dict[str, Code]]
) -> Any:
    """The report of one prediction: per class the volume in ml, and the ends of its interval as measurements of their own.

    Intervals of a model, a class or an image without calibration have codes of their own, whose names say so.
    """
    hd = highdicom()
    record = prediction.provenance
    concept = lambda code: hd.sr.CodedConcept(*code)
    observer = hd.sr.ObserverContext(
        observer_type=hd.sr.CodedConcept("121007", "DCM", "Device"),
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name="diffuseg", model_name=str(record["model_name"])[:64], serial_number=str(record["model"])
        ),
    )
    groups = []
    for number, name in enumerate(names, 1):
        known = codes_of(name, codes)
        segment = next(item for item in segmentation.SegmentSequence if item.SegmentNumber == number)
        groups.append(
            hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=hd.sr.TrackingIdentifier(segment.TrackingUID, segment.TrackingID),
                referenced_segment=hd.sr.ReferencedSegment(
                    sop_class_uid=segmentation.SOPClassUID,
                    sop_instance_uid=segmentation.SOPInstanceUID,
                    segment_number=number,
                    source_series=hd.sr.SourceSeriesForSegmentation(headers[0].SeriesInstanceUID),
                ),
                finding_type=concept(known["type"]),
                finding_category=concept(known["category"]),
                algorithm_id=hd.sr.AlgorithmIdentification("diffuseg", str(record["versions"]["diffuseg"])),
                measurements=[
                    hd.sr.Measurement(name=concept(code), value=float(value), unit=concept(MILLILITRE))
                    for code, value in _values(record, name)
                    if value is not None
                ],
            )
        )
    modality = str(headers[0].get("Modality", ""))
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=concept(PROCEDURES.get(modality, IMAGING)),
        imaging_measurements=groups,
    )
    made = hd.sr.Comprehensive3DSR(
        evidence=[*headers, segmentation],
        content=report,
        series_instance_uid=hd.UID(),
        series_number=int(segmentation.SeriesNumber) + 1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MAKER["manufacturer"],
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    made.SeriesDescription = "diffuseg volumes"
    return made


def _values(record: dict[str, Any], name: str) -> list[tuple[tuple[str, str, str], float | None]]:
    """What is said of a class: codes and figures in ml."""
    lower, upper = (RAW_LOWER, RAW_UPPER) if is_raw(record, name) else (LOWER, UPPER)
    low, high = record["volume_ml_90"][name]
    return [(VOLUME, record["volume_ml"][name]), (lower, low), (upper, high)]
