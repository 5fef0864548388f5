"""What an instance costs an hour: from a file of the user's, or AWS's Price List API, kept with its date.

No price is written down in this project; where neither source knows one, there is none.
"""

import json
import logging
import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.errors import CloudError, ConfigError
from dogbreed_ml.files import write_whole
from sagemaker_jobs.client import Aws, translated

logger = logging.getLogger(__name__)

Component = Literal["Training", "Hosting"]
"""SageMaker's own words for what an instance is paid for."""

PRICES_FILE = ".dogbreed/prices.json"
MAX_AGE_DAYS = 7
"""AWS is asked anew for what was kept longer."""
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Price:
    """On-demand dollars for one instance."""

    usd_per_hour: float
    source: str
    """For people."""
    asked_on: str | None = None
    """ISO date; None for the user's own file."""

    def render(self) -> str:
        date_text = f", {self.asked_on}" if self.asked_on else ""
        return f"${self.usd_per_hour:g} an hour ({self.source}{date_text})"


def read_prices(config: SagemakerConfig, *, project_dir: Path) -> dict[str, float] | None:
    """Dollars an hour by instance type of sagemaker.prices_path; None without one. Raises ConfigError."""
    if config.prices_path is None:
        return None
    path = project_dir / Path(config.prices_path).expanduser()
    rule = 'sagemaker.prices_path must be a JSON file such as {"ml.g5.xlarge": 1.25}'
    try:
        prices = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{rule}, and {path} cannot be read: {error}.") from error
    if not isinstance(prices, dict):
        raise ConfigError(f"{rule}, got {prices!r} in {path}.")
    for name, value in prices.items():
        # Python reads NaN and Infinity, which are no JSON.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"{rule}, got {value!r} for {name} in {path}.")
    return {name: float(value) for name, value in prices.items()}


def look_up_price(
    config: SagemakerConfig,
    *,
    instance_type: str,
    component: Component,
    region: str,
    project_dir: Path,
    today: date | None = None,
) -> Price | None:
    """As `find_price`, asking AWS where there are credentials; without, only a file or an earlier answer can know."""
    with ExitStack() as opened:
        try:
            aws: Aws | None = opened.enter_context(Aws.open(config, patience_s=_PATIENCE_S))
        except ConfigError:
            aws = None
        return find_price(
            config,
            instance_type=instance_type,
            component=component,
            region=region,
            project_dir=project_dir,
            # The local SageMaker has no price list to ask.
            aws=None if aws is None or aws.is_local else aws,
            today=today or datetime.now(UTC).date(),
        )


def find_price(
    config: SagemakerConfig,
    *,
    instance_type: str,
    component: Component,
    region: str,
    project_dir: Path,
    aws: Aws | None,
    today: date,
) -> Price | None:
    """The price where it can be known: sagemaker.prices_path, what AWS said lately, or what it says now to `aws`.

    Raises ConfigError for a file of prices that cannot be read. That AWS does not answer is no error.
    """
    prices = read_prices(config, project_dir=project_dir)
    if prices is not None:
        if instance_type not in prices:
            logger.warning("%s names no price of %s.", config.prices_path, instance_type)
            return None
        return Price(prices[instance_type], Path(str(config.prices_path)).name)
    path, key = project_dir / PRICES_FILE, f"{region} {component} {instance_type}"
    known = _load(path)
    kept = Price(**known[key]) if key in known else None
    if kept is not None and (today - date.fromisoformat(str(kept.asked_on))).days <= MAX_AGE_DAYS:
        return kept
    if aws is None:
        return kept
    try:
        usd_per_hour = _ask(aws, instance_type, component, region)
    except CloudError as error:
        logger.warning("%s", error)
        return kept
    if usd_per_hour is None:
        return kept
    price = Price(usd_per_hour, "AWS Price List", today.isoformat())
    write_whole(path, json.dumps({**known, key: asdict(price)}, indent=2))
    return price


def _load(path: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return kept


def _ask(aws: Aws, instance_type: str, component: Component, region: str) -> float | None:
    wanted = {"regionCode": region, "instanceName": instance_type}
    pages = aws.client("pricing").get_paginator("get_products")
    with translated("ask AWS's Price List for a price"):
        found = pages.paginate(
            ServiceCode="AmazonSageMaker",
            FormatVersion="aws_v1",
            Filters=[{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in wanted.items()],
        )
        products = [json.loads(each) for page in found for each in page["PriceList"]]
    prices = [price for each in products if _is_of(each, component) for price in _hourly_prices(each)]
    # Several offers of one instance differ by what is free of charge, at 0.
    return max(prices, default=None)


def _is_of(product: dict[str, Any], component: Component) -> bool:
    attributes = product["product"]["attributes"]
    return component in (attributes.get("component"), attributes.get("platoinstancetype"))


def _hourly_prices(product: dict[str, Any]) -> list[float]:
    dimensions = [
        dimension
        for term in product.get("terms", {}).get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
    ]
    return [float(each["pricePerUnit"]["USD"]) for each in dimensions if "USD" in each["pricePerUnit"]]
