/*
 * What runs on a Linux system: services, listening ports, mounts, users, packages, modules, cron, network. Read from
 * /proc, /sys, /etc and systemd's own word; nothing is changed, no secret is read. The agent tells it of the source,
 * the probe of the copy in its test boot, and the center compares the two.
 */
#pragma once

#include <jansson.h>

#define SURVEY_TEXT_MAX     256u /* bytes of any string in it */
#define SURVEY_LIST_MAX     400u /* entries; of accounts more */
#define SURVEY_PACKAGES_MAX 6000u

/*
 * {"init":"systemd"|"other","units":[{"name","state","enabled","condition":bool}],"processes":[name,...],
 * "listening":[{"proto":"tcp"|"udp","port","address":"any"|"loopback"|"one","program","unit"}],
 * "mounts":[{"source","target","type","options","fstab":bool}],"swaps":n,
 * "users":[{"name","id"}],"groups":[{"name","id"}],"packages":{"kind","count","digest","list":["name=version",...]},
 * "modules":[{"name","kind":"fs","net","drivers/md",...}],"cron":[{"path","digest"}],
 * "routes":[{"destination","gateway","interface"}],"hostname","timezone","cut":[names of lists that were longer]}
 *
 * `root` stands before every path ("" is this system); systemd is only asked about this one. What can't be read is
 * left out. New reference, NULL when out of memory.
 */
json_t *survey_take(const char *root);
