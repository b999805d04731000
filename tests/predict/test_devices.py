from dataclasses import replace

import pytest

from paceline.predict.work._devices import Device, nearest_devices

TABLE_NAMES = {
    "NVIDIA A100 80GB PCIe": "A100 PCIe 80GB",
    "NVIDIA GeForce RTX 5090": "RTX 5090",
    "NVIDIA H100 PCIe": "H100 PCIe 80GB",
    "NVIDIA L4": "L4",
    "NVIDIA L40S": "L40S",
    "Tesla P100-PCIE-16GB": "P100 PCIe 16GB",
    "Tesla T4": "T4",
    "Tesla V100-SXM2-16GB": "V100 SXM2 16GB",
}
FORGIVING = {
    "h100": "H100 PCIe 80GB",
    "H100-SXM": "H100 SXM5 80GB",
    "h100sxm": "H100 SXM5 80GB",
    "rtx3090": "RTX 3090",
    "4090": "RTX 4090",
    "a6000": "RTX A6000",
    "A100 40GB": "A100 SXM4 40GB",
    "AMD Instinct MI300X": "MI300X 192GB",
    "A10": "A10",
    "a10g": "A10G",
    "L40": "L40",
}
ASKED_FOR = [
    "P100",
    "V100",
    "T4",
    "A100",
    "A40",
    "L4",
    "L40S",
    "P4",
    "H100",
    "RTX5090",
    "A10",
    "A10G",
    "A6000",
    "3090",
    "4090",
    "H200",
    "B200",
    "MI250X",
    "MI300X",
    "L40",
    "A30",
]


@pytest.mark.parametrize(("name", "found"), [*TABLE_NAMES.items(), *FORGIVING.items()])
def test_a_device_is_found_by_a_forgiving_name(name: str, found: str) -> None:
    assert Device.named(name).name == found


@pytest.mark.parametrize("name", ASKED_FOR)
def test_the_devices_that_people_rent_are_there(name: str) -> None:
    assert Device.named(name).name


def test_each_row_is_found_by_its_own_name() -> None:
    assert len(Device.all()) >= 25
    for row in Device.all():
        assert Device.named(row.name) is row


@pytest.mark.parametrize("name", ["H10", "V10", "TPU v4", "rtx", "", "h100x", "cuda"])
def test_an_unknown_device_is_answered_with_the_nearest_names(name: str) -> None:
    nearest = nearest_devices(name)
    assert len(nearest) >= 1
    with pytest.raises(ValueError, match="did you mean") as caught:
        Device.named(name)
    assert ", ".join(nearest) in str(caught.value)
    assert "'cpu' measures this machine" in str(caught.value)


def test_a_typo_names_what_was_meant() -> None:
    assert "H100 PCIe 80GB" in nearest_devices("H10O")
    assert "MI300X 192GB" in nearest_devices("MI30X")


@pytest.mark.parametrize("row", Device.all(), ids=lambda row: row.name)
def test_data_sheets_are_plausible(row: object) -> None:
    assert isinstance(row, Device)
    assert 1e12 < row.fp32_flops < 3e14
    assert row.fp16_flops <= row.peak_flops(16) <= 3e15
    assert row.peak_flops(32) == row.fp32_flops
    assert 1e11 < row.memory_bytes_per_s < 1e13
    assert 4 * 2**30 <= row.memory_bytes <= 512 * 2**30
    # Two operations per core and cycle, within what data sheets round and dual issue adds.
    assert 0.7 < row.fp32_flops / (2 * row.num_cores * row.boost_clock_hz) < 2.1
    assert 0.1 < row.price_per_hour < 20
    assert row.source


def test_a_price_can_be_overridden() -> None:
    assert replace(Device.named("T4"), price_per_hour=0.5).price_per_hour == 0.5
