/* XML by libxml2: read with bounds and without anything that reaches beyond the text, changed in place. */
#include "provider/libvirt_int.h"

#include <errno.h>
#include <libxml/parser.h>
#include <stdarg.h>
#include <string.h>

#include "base/err.h"

#define X(s) ((const xmlChar *)(s))

int libvirt_xml_parse(const char *text, xmlDocPtr *ret, struct err *e)
{
	size_t len = strnlen(text, LIBVIRT_XML_MAX + 1);
	xmlDocPtr doc;

	if (len > LIBVIRT_XML_MAX)
		return err_set(e, -EFBIG, "the host's answer is longer than %u bytes", LIBVIRT_XML_MAX);
	xmlResetLastError();
	/* Nothing is substituted, loaded or printed. */
	doc =
	    xmlReadMemory(text, (int)len, "host.xml", NULL, XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
	if (!doc || doc->intSubset || doc->extSubset || !xmlDocGetRootElement(doc)) {
		xmlFreeDoc(doc);
		return err_set(e, -EPROTO, "the host's answer is no XML that is understood");
	}
	*ret = doc;
	return 0;
}

int libvirt_xml_text(xmlDocPtr doc, char **ret, struct err *e)
{
	const xmlError *last = xmlGetLastError();
	bool broken = last && last->code == XML_ERR_NO_MEMORY;
	xmlBufferPtr b = xmlBufferCreate();
	char *text = NULL;

	if (b && !broken && xmlNodeDump(b, doc, xmlDocGetRootElement(doc), 0, 0) > 0)
		text = strdup((const char *)xmlBufferContent(b));
	if (b)
		xmlBufferFree(b);
	if (!text)
		return err_nomem(e);
	*ret = text;
	return 0;
}

xmlNodePtr libvirt_xml_next(xmlNodePtr node, const char *name)
{
	for (node = node ? node->next : NULL; node; node = node->next)
		if (node->type == XML_ELEMENT_NODE && xmlStrEqual(node->name, X(name)))
			return node;
	return NULL;
}

xmlNodePtr libvirt_xml_first(xmlNodePtr parent, const char *name)
{
	for (xmlNodePtr n = parent ? parent->children : NULL; n; n = n->next)
		if (n->type == XML_ELEMENT_NODE && xmlStrEqual(n->name, X(name)))
			return n;
	return NULL;
}

xmlNodePtr libvirt_xml_at(xmlNodePtr node, const char *path)
{
	char name[64];

	while (node && *path) {
		size_t n = strcspn(path, "/");

		snprintf(name, sizeof(name), "%.*s", (int)n, path);
		node = libvirt_xml_first(node, name);
		path += n + (path[n] == '/');
	}
	return node;
}

static bool xml_copy(xmlChar *value, char *buf, size_t size)
{
	bool fits = value && strlen((const char *)value) < size;

	snprintf(buf, size, "%s", fits ? (const char *)value : "");
	xmlFree(value);
	return fits;
}

bool libvirt_xml_attr(xmlNodePtr node, const char *name, char *buf, size_t size)
{
	return xml_copy(node ? xmlGetNoNsProp(node, X(name)) : NULL, buf, size);
}

bool libvirt_xml_content(xmlNodePtr node, char *buf, size_t size)
{
	return xml_copy(node ? xmlNodeGetContent(node) : NULL, buf, size);
}

bool libvirt_xml_attr_is(xmlNodePtr node, const char *name, const char *value)
{
	char buf[256];

	return libvirt_xml_attr(node, name, buf, sizeof(buf)) && strcmp(buf, value) == 0;
}

xmlNodePtr libvirt_xml_add(xmlNodePtr parent, const char *name, const char *text, ...)
{
	/* The text becomes a node as it is: no entities are seen in it. */
	xmlNodePtr n = xmlNewTextChild(parent, NULL, X(name), X(text));
	const char *attr;
	va_list ap;

	if (!n)
		return NULL;
	if (!parent->ns || !xmlStrEqual(parent->ns->href, X(LIBVIRT_NAMESPACE)))
		xmlSetNs(n, NULL);
	va_start(ap, text);
	while ((attr = va_arg(ap, const char *))) {
		const char *value = va_arg(ap, const char *);

		xmlNewProp(n, X(attr), X(value));
	}
	va_end(ap);
	return n;
}

xmlNodePtr libvirt_xml_need(xmlNodePtr parent, const char *name)
{
	return libvirt_xml_first(parent, name) ?: libvirt_xml_add(parent, name, NULL, NULL);
}

void libvirt_xml_set_text(xmlNodePtr node, const char *text)
{
	xmlNodePtr t = xmlNewDocText(node->doc, X(text));

	libvirt_xml_drop(node, NULL);
	if (t)
		xmlAddChild(node, t);
}

void libvirt_xml_drop(xmlNodePtr parent, const char *name)
{
	xmlNodePtr next;

	for (xmlNodePtr n = parent->children; n; n = next) {
		next = n->next;
		if (name && (n->type != XML_ELEMENT_NODE || !xmlStrEqual(n->name, X(name))))
			continue;
		xmlUnlinkNode(n);
		xmlFreeNode(n);
	}
}

static void xml_plain(xmlNodePtr node)
{
	node->ns = NULL;
	xmlFreeNsList(node->nsDef);
	node->nsDef = NULL;
	for (xmlNodePtr n = node->children; n; n = n->next)
		if (n->type == XML_ELEMENT_NODE)
			xml_plain(n);
}

xmlNodePtr libvirt_xml_copy(xmlNodePtr node, xmlDocPtr doc)
{
	xmlNodePtr copy = xmlDocCopyNode(node, doc, 1);

	if (copy)
		xml_plain(copy);
	return copy;
}
