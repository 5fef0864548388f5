"""Prices from a server that speaks GetProducts' JSON, from a file, and from what was kept."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.errors import ConfigError
from sagemaker_jobs.client import Aws
from sagemaker_jobs.pricing import MAX_AGE_DAYS, PRICES_FILE, Component, Price, find_price

TODAY = date(2026, 11, 21)
REGION = "us-west-2"


@dataclass
class PriceList:
    """A Price List of one page a product."""

    products: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        if self.status != 200:
            return {"__type": "AccessDeniedException", "Message": "not allowed to GetProducts"}
        wanted = {each["Field"]: each["Value"] for each in request["Filters"]}
        found = [each for each in self.products if wanted.items() <= each["product"]["attributes"].items()]
        page = int(request.get("NextToken", "0"))
        answer: dict[str, Any] = {
            "FormatVersion": "aws_v1",
            "PriceList": [json.dumps(each) for each in found[page : page + 1]],
        }
        return answer | ({"NextToken": str(page + 1)} if page + 1 < len(found) else {})


@pytest.fixture
def price_list(monkeypatch: pytest.MonkeyPatch) -> Iterator[PriceList]:
    kept = PriceList()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["X-Amz-Target"] == "AWSPriceListService.GetProducts"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(kept.answer(request)).encode()
            self.send_response(kept.status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", f"http://127.0.0.1:{http.server_port}")
        yield kept
        http.shutdown()
        thread.join()


def product(instance_type: str, usd: str, *, component: str = "Training", region: str = REGION) -> dict[str, Any]:
    attributes = {"instanceName": instance_type, "regionCode": region, "component": component}
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": usd}}
    terms = {"OnDemand": {"A.B": {"priceDimensions": {"A.B.C": dimension}}}}
    return {"product": {"productFamily": "ML Instance", "attributes": attributes}, "terms": terms}


def find(
    folder: Path,
    *,
    instance_type: str = "ml.g5.xlarge",
    component: Component = "Training",
    today: date = TODAY,
    asks: bool = True,
    prices_path: str | None = None,
) -> Price | None:
    config = SagemakerConfig(region=REGION, prices_path=prices_path)
    aws = Aws.open(config, patience_s=1) if asks else None
    try:
        return find_price(
            config,
            instance_type=instance_type,
            component=component,
            region=REGION,
            project_dir=folder,
            aws=aws,
            today=today,
        )
    finally:
        if aws is not None:
            aws.close()


def test_price_is_that_of_the_instance_in_its_region_for_its_purpose(price_list: PriceList, tmp_path: Path) -> None:
    price_list.products = [
        product("ml.g5.xlarge", "9.0", region="eu-central-1"),
        product("ml.g5.2xlarge", "8.0"),
        product("ml.g5.xlarge", "7.0", component="Hosting"),
        product("ml.g5.xlarge", "1.5"),
    ]

    training, hosting = find(tmp_path), find(tmp_path, component="Hosting")

    assert training == Price(1.5, "AWS Price List", "2026-11-21")
    assert hosting is not None
    assert hosting.usd_per_hour == 7.0
    assert "$1.5 an hour" in training.render()
    assert "2026-11-21" in training.render()


def test_price_is_kept_with_its_date_and_asked_for_again_when_it_is_old(price_list: PriceList, tmp_path: Path) -> None:
    price_list.products = [product("ml.g5.xlarge", "1.5")]
    find(tmp_path)
    kept = json.loads((tmp_path / PRICES_FILE).read_text())
    assert list(kept.values()) == [{"usd_per_hour": 1.5, "source": "AWS Price List", "asked_on": "2026-11-21"}]

    price_list.products = [product("ml.g5.xlarge", "2.5")]
    soon, late = TODAY + timedelta(MAX_AGE_DAYS), TODAY + timedelta(MAX_AGE_DAYS + 1)
    assert find(tmp_path, today=soon) == Price(1.5, "AWS Price List", "2026-11-21")
    assert len(price_list.asked) == 1
    # An old price with its date is better than none where nobody can be asked.
    assert find(tmp_path, today=late, asks=False) == Price(1.5, "AWS Price List", "2026-11-21")
    assert find(tmp_path, today=late) == Price(2.5, "AWS Price List", late.isoformat())


def test_price_is_none_where_the_list_has_none_or_refuses(
    price_list: PriceList, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find(tmp_path) is None
    price_list.status = 400
    assert find(tmp_path) is None
    assert "not allowed to GetProducts" in caplog.text
    assert find(tmp_path, asks=False) is None
    assert not (tmp_path / PRICES_FILE).exists()


def test_file_of_prices_wins_and_asks_nobody(
    price_list: PriceList, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    price_list.products = [product("ml.g5.xlarge", "1.5")]
    (tmp_path / "prices.json").write_text('{"ml.g5.xlarge": 0.4}')

    assert find(tmp_path, prices_path="prices.json") == Price(0.4, "prices.json")
    assert find(tmp_path, prices_path="prices.json", instance_type="ml.m5.xlarge") is None
    assert "prices.json names no price of ml.m5.xlarge" in caplog.text
    assert price_list.asked == []


@pytest.mark.parametrize(
    "content",
    ["no JSON", "[1]", "null", '{"ml.g5.xlarge": "cheap"}', '{"ml.g5.xlarge": -1}', '{"ml.m5.xlarge": Infinity}', None],
)
def test_file_of_prices_that_is_none_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "prices.json").write_text(content)
    with pytest.raises(ConfigError, match="sagemaker.prices_path"):
        find(tmp_path, prices_path="prices.json", asks=False)
