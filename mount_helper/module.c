/* The extension module mount_helper._lane: the lane for the supervisor, the board for both (documented in _lane.pyi). */
#include "module.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lane.h"

typedef struct {
    PyObject_HEAD struct lane *lane;
} LaneObject;

static struct lane *lane_of(PyObject *self) {
    struct lane *lane = ((LaneObject *)self)->lane;
    if (!lane)
        PyErr_SetString(PyExc_ValueError, "the lane is closed");
    return lane;
}

static PyObject *Lane_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"fuse_fd",           "board_fd",          "threads",         "max_read_bytes",
                            "max_background",    "kept_limit_bytes",  "request_deadline_s", "answer_deadline_s",
                            "disk_patience_s",   NULL};
    int fuse_fd, board_fd;
    unsigned threads = 2, max_read = 131072, max_background = 0;
    unsigned long long kept_limit = 64 << 20;
    double request_deadline_s = 0, answer_deadline_s = 0, disk_patience_s = 1;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "ii|$IIIKddd", names, &fuse_fd, &board_fd, &threads, &max_read,
                                     &max_background, &kept_limit, &request_deadline_s, &answer_deadline_s,
                                     &disk_patience_s))
        return NULL;
    if (max_read < 4096 || max_read > MAX_READ || max_background > 65535 || request_deadline_s < 0 ||
        answer_deadline_s < 0 || disk_patience_s < 0 || threads < 1 || threads > MAX_DEVICES)
        return PyErr_Format(PyExc_ValueError,
                            "max_read_bytes is 4096 to 1048576, threads 1 to %d, deadlines are not negative", MAX_DEVICES);
    struct board *board = board_map(board_fd, false);
    if (!board)
        return PyErr_Format(PyExc_ValueError, "this is no board of version %d", BOARD_VERSION);
    LaneObject *self = (LaneObject *)type->tp_alloc(type, 0);
    int devices[MAX_DEVICES];
    uint32_t count = clone_devices(fuse_fd, devices, threads);
    if (!self || !(self->lane = lane_new(devices, count, board, max_read))) {
        munmap(board, BOARD_BYTES);
        Py_XDECREF(self);
        return PyErr_NoMemory();
    }
    self->lane->crew.wanted = threads;
    self->lane->max_background = max_background;
    self->lane->kept_limit_bytes = kept_limit;
    self->lane->request_deadline_ns = (uint64_t)(request_deadline_s * 1e9);
    self->lane->answer_deadline_ns = (uint64_t)(answer_deadline_s * 1e9);
    self->lane->disk_patience_ns = (uint64_t)(disk_patience_s * 1e9);
    return (PyObject *)self;
}

static PyObject *Lane_close(PyObject *self, PyObject *unused) {
    (void)unused;
    struct lane *lane = ((LaneObject *)self)->lane;
    ((LaneObject *)self)->lane = NULL;
    if (lane) {
        Py_BEGIN_ALLOW_THREADS;
        lane_close(lane);
        Py_END_ALLOW_THREADS;
    }
    Py_RETURN_NONE;
}

static void Lane_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(Lane_close(self, NULL));
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *Lane_start(PyObject *self, PyObject *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    if (!lane)
        return NULL;
    if (lane->started)
        return PyErr_Format(PyExc_ValueError, "the lane runs");
    if ((errno = lane_start(lane)))
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *Lane_attach(PyObject *self, PyObject *arguments) {
    struct lane *lane = lane_of(self);
    int fd, reads_fd = -1;
    if (!lane || !PyArg_ParseTuple(arguments, "i|i", &fd, &reads_fd))
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS;
    error = lane_attach(lane, fd, reads_fd);
    Py_END_ALLOW_THREADS;
    if ((errno = error))
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *Lane_set_segment(PyObject *self, PyObject *arguments) {
    struct lane *lane = lane_of(self);
    unsigned class;
    int fd;
    if (!lane || !PyArg_ParseTuple(arguments, "Ii", &class, &fd))
        return NULL;
    if ((errno = lane_set_segment(lane, class, fd)))
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *Lane_detach(PyObject *self, PyObject *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    if (!lane)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    lane_detach(lane);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *Lane_events(PyObject *self, PyObject *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    uint64_t count;
    if (!lane)
        return NULL;
    if (read(lane->event_fd, &count, sizeof count) < 0) {
        /* nothing new: the mask is 0 or will be told again */
    }
    return PyLong_FromUnsignedLong(atomic_exchange(&lane->events, 0));
}

int put(PyObject *dictionary, const char *key, unsigned long long value) {
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    int error = number ? PyDict_SetItemString(dictionary, key, number) : -1;
    Py_XDECREF(number);
    return error;
}

static PyObject *Lane_statistics(PyObject *self, PyObject *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    PyObject *result = lane ? PyDict_New() : NULL, *kinds = result ? PyDict_New() : NULL;
    if (!kinds) {
        Py_XDECREF(result);
        return NULL;
    }
    int error = 0;
#define X(name) error |= put(result, #name, atomic_load(&lane->count.name));
    COUNTERS_OF_LANE(X)
#undef X
    for (int opcode = 0; opcode < OPCODES; opcode++) {
        char name[16];
        snprintf(name, sizeof name, "%d", opcode);
        unsigned long long count = atomic_load(&lane->passed_on[opcode]);
        error |= count ? put(kinds, name, count) : 0;
    }
    pthread_mutex_lock(&lane->mutex);
    uint64_t kept = lane->kept.count, bytes = lane->kept.bytes, held = lane->kept.held;
    uint64_t notification_bytes = lane->notification_bytes;
    bool attached = lane->current != NULL;
    pthread_mutex_unlock(&lane->mutex);
    pthread_mutex_lock(&lane->crew.mutex);
    uint32_t started = lane->crew.started, parked = lane->crew.parked - lane->crew.called, reading = atomic_load(&lane->crew.reading);
    pthread_mutex_unlock(&lane->crew.mutex);
    PyObject *reads = board_counters_dict(lane->board);
    error |= put(result, "held", held) | put(result, "kept", kept) | put(result, "kept_bytes", bytes) | put(result, "attached", attached) |
             put(result, "notification_bytes", notification_bytes) |
             put(result, "readers", started) | put(result, "readers_on_disk", started - parked - reading) |
             put(result, "beats", atomic_load(&lane->board->beats)) |
             PyDict_SetItemString(result, "requests_by_opcode", kinds) |
             (reads ? PyDict_SetItemString(result, "reads", reads) : -1);
    Py_DECREF(kinds);
    Py_XDECREF(reads);
    if (error)
        Py_CLEAR(result);
    return result;
}

static PyObject *Lane_event_fd(PyObject *self, void *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    return lane ? PyLong_FromLong(lane->event_fd) : NULL;
}

static PyObject *Lane_device_fds(PyObject *self, void *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    PyObject *list = lane ? PyList_New(lane->device_count) : NULL;
    for (uint32_t i = 0; list && i < lane->device_count; i++) {
        PyObject *fd = PyLong_FromLong(lane->devices[i]);
        if (!fd || PyList_SetItem(list, i, fd) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyMethodDef lane_methods[] = {
    {"start", Lane_start, METH_NOARGS, "Start to read requests; the file system must be mounted."},
    {"attach", Lane_attach, METH_VARARGS, "Take the lane's ends of a new daemon's sockets (and own them): for all, for reads."},
    {"set_segment", Lane_set_segment, METH_VARARGS, "Read the slots of a class from this file."},
    {"detach", Lane_detach, METH_NOARGS, "Shut all daemons' sockets; unanswered requests wait."},
    {"events", Lane_events, METH_NOARGS, "Return and clear the mask of EVENT_*."},
    {"statistics", Lane_statistics, METH_NOARGS, "Return the counters as a dict."},
    {"close", Lane_close, METH_NOARGS, "End the threads and close /dev/fuse."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef lane_properties[] = {
    {"event_fd", Lane_event_fd, NULL, "Readable when events() has something to tell.", NULL},
    {"device_fds", Lane_device_fds, NULL, "The open files of /dev/fuse.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot lane_slots[] = {
    {Py_tp_new, Lane_new},         {Py_tp_dealloc, Lane_dealloc},
    {Py_tp_methods, lane_methods}, {Py_tp_getset, lane_properties},
    {Py_tp_doc, "The owner of /dev/fuse: answers hits, keeps other requests and passes them to a daemon."},
    {0, NULL},
};

PyType_Spec lane_spec = {"mount_helper._lane.Lane", sizeof(LaneObject), 0, Py_TPFLAGS_DEFAULT, lane_slots};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "mount_helper._lane", NULL, -1, NULL, NULL, NULL, NULL, NULL};

static int add(PyObject *to, const char *name, PyObject *value) {
    int error = value ? PyModule_AddObjectRef(to, name, value) : -1;
    Py_XDECREF(value);
    return error;
}

PyMODINIT_FUNC PyInit__lane(void) {
    PyObject *result = PyModule_Create(&module);
    if (result && (add(result, "Lane", PyType_FromSpec(&lane_spec)) || add(result, "Board", PyType_FromSpec(&board_spec)) ||
                   add(result, "BOARD_LAYOUT", board_layout()) ||
                   PyModule_AddIntConstant(result, "HOLD_ERROR", HOLD_ERROR) ||
                   PyModule_AddStringConstant(result, "PASSED_READ_FORMAT", PASSED_READ_FORMAT) ||
                   PyModule_AddIntConstant(result, "EVENT_INIT_ANSWERED", EVENT_INIT_ANSWERED) ||
                   PyModule_AddIntConstant(result, "EVENT_DAEMON_LOST", EVENT_DAEMON_LOST) ||
                   PyModule_AddIntConstant(result, "EVENT_UNMOUNTED", EVENT_UNMOUNTED)))
        Py_CLEAR(result);
    return result;
}
