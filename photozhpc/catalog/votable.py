"""The VOTable in the schema of a Parquet file (VOParquet, IVOA Note 1.0)."""

from xml.etree import ElementTree

import pyarrow as pa

_VOTABLE_TYPE = {"int64": "long", "int32": "int", "double": "double", "float": "float"}
_POSITIONS = ("pos.eq.ra;meta.main", "pos.eq.dec;meta.main")
_CONTENT_KEY = b"IVOA.VOTable-Parquet.content"
_NAMESPACE = "{http://www.ivoa.net/xml/VOTable/v1.3}"


def with_votable(schema: pa.Schema, about: str) -> pa.Schema:
    """Return the schema with a VOTable without data in its metadata: one FIELD per column.

    Nested columns are left out, because a VOTable has none.

    Args:
        schema: each field has the metadata `ucd`, `description` and, if any, `unit`.
        about: the table's description.
    """
    root = ElementTree.Element(
        "VOTABLE", {"version": "1.4", "xmlns": "http://www.ivoa.net/xml/VOTable/v1.3"}
    )
    resource = ElementTree.SubElement(root, "RESOURCE", {"type": "results"})
    ElementTree.SubElement(resource, "COOSYS", {"ID": "icrs", "system": "ICRS"})
    table = ElementTree.SubElement(resource, "TABLE", {"name": "photoz"})
    ElementTree.SubElement(table, "DESCRIPTION").text = about
    for field in schema:
        if pa.types.is_struct(field.type):
            continue
        metadata = {key.decode(): value.decode() for key, value in field.metadata.items()}
        attributes = {"name": field.name}
        if field.type == pa.string():
            attributes |= {"datatype": "char", "arraysize": "255*"}
        elif pa.types.is_list(field.type):
            attributes["datatype"] = _VOTABLE_TYPE[str(field.type.value_type)]
            attributes["arraysize"] = "*"
        else:
            attributes["datatype"] = _VOTABLE_TYPE[str(field.type)]
        attributes |= {key: metadata[key] for key in ("ucd", "unit") if metadata.get(key)}
        if metadata["ucd"] in _POSITIONS:
            attributes["ref"] = "icrs"
        element = ElementTree.SubElement(table, "FIELD", attributes)
        ElementTree.SubElement(element, "DESCRIPTION").text = metadata["description"]
    content = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return schema.with_metadata(
        {**(schema.metadata or {}), b"IVOA.VOTable-Parquet.version": b"1.0", _CONTENT_KEY: content}
    )


def table_description(schema: pa.Schema) -> str:
    """Return the description of the table in a schema's VOTable; "" if there is none."""
    try:
        root = ElementTree.fromstring((schema.metadata or {})[_CONTENT_KEY])
    except (KeyError, ElementTree.ParseError):
        return ""
    return root.findtext(f".//{_NAMESPACE}TABLE/{_NAMESPACE}DESCRIPTION") or ""
