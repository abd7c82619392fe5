/* The commands of replant-transition that run inside machines. Each returns an exit status. */
#pragma once

/* In the appliance: takes one request from the center and answers with events, the last one a report or an error. */
int transition_appliance(void *options, int argc, char **argv);
/* In a test boot, as a service of the copied system: tells how far it came. */
int transition_probe(void *options, int argc, char **argv);
