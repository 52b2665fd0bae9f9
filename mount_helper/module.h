/* What the files of the extension module share with each other. */
#ifndef CACHEFS_MODULE_H
#define CACHEFS_MODULE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

struct board;

extern PyType_Spec board_spec, lane_spec;

/* Map a board's file; NULL with errno if it is none. Its size is sealed: reading it cannot fault. */
struct board *board_map(int fd, bool is_new);

PyObject *board_counters_dict(struct board *board);
PyObject *board_layout(void);

/* Put a number into a dict. */
int put(PyObject *dictionary, const char *key, unsigned long long value);

#endif
