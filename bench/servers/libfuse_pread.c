/*
 * The least that a C program can do with libfuse: one file, each read a pread and a reply.
 *
 *   libfuse_pread FILE MOUNTPOINT [THREADS] [clone_fd] [splice]
 *
 * THREADS 1 (default) is libfuse's single-threaded loop; more is its multi-threaded one. `clone_fd` gives each thread
 * its own /dev/fuse; `splice` lets libfuse move the pages of FILE into the reply without a copy in user space.
 * Runs in the foreground until SIGTERM or unmount.
 */
#define FUSE_USE_VERSION 312
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define IMAGE_NAME "image"
#define IMAGE_INODE 2
#define MAX_READ_BYTES (1024 * 1024)
#define FOREVER_S 86400.0

static int image_fd;
static off_t image_bytes;
static int use_splice;
static _Thread_local char *buffer;

static void fill_attributes(fuse_ino_t inode, struct stat *attributes)
{
	memset(attributes, 0, sizeof *attributes);
	attributes->st_ino = inode;
	if (inode == FUSE_ROOT_ID) {
		attributes->st_mode = S_IFDIR | 0755;
		attributes->st_nlink = 2;
		return;
	}
	attributes->st_mode = S_IFREG | 0444;
	attributes->st_nlink = 1;
	attributes->st_size = image_bytes;
}

static void on_init(void *userdata, struct fuse_conn_info *connection)
{
	(void)userdata;
	connection->max_read = MAX_READ_BYTES;
	connection->max_readahead = MAX_READ_BYTES;
	if (use_splice)
		connection->want |= connection->capable & (FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = {.ino = IMAGE_INODE, .attr_timeout = FOREVER_S, .entry_timeout = FOREVER_S};

	if (parent != FUSE_ROOT_ID || strcmp(name, IMAGE_NAME) != 0) {
		fuse_reply_err(request, ENOENT);
		return;
	}
	fill_attributes(IMAGE_INODE, &entry.attr);
	fuse_reply_entry(request, &entry);
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
	struct stat attributes;

	(void)file;
	fill_attributes(inode, &attributes);
	fuse_reply_attr(request, &attributes, FOREVER_S);
}

static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
	if (inode != IMAGE_INODE || (file->flags & O_ACCMODE) != O_RDONLY) {
		fuse_reply_err(request, EACCES);
		return;
	}
	file->keep_cache = 1;
	fuse_reply_open(request, file);
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
	ssize_t count;

	(void)inode;
	(void)file;
	if (use_splice) {
		struct fuse_bufvec source = FUSE_BUFVEC_INIT(size);

		source.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
		source.buf[0].fd = image_fd;
		source.buf[0].pos = offset;
		fuse_reply_data(request, &source, FUSE_BUF_SPLICE_MOVE);
		return;
	}
	if (buffer == NULL)
		buffer = aligned_alloc(4096, MAX_READ_BYTES);
	if (buffer == NULL || size > MAX_READ_BYTES) {
		fuse_reply_err(request, ENOMEM);
		return;
	}
	count = pread(image_fd, buffer, size, offset);
	if (count < 0)
		fuse_reply_err(request, errno);
	else
		fuse_reply_buf(request, buffer, (size_t)count);
}

static const struct fuse_lowlevel_ops operations = {
	.init = on_init,
	.lookup = on_lookup,
	.getattr = on_getattr,
	.open = on_open,
	.read = on_read,
};

static int serve(struct fuse_session *session, unsigned threads, int clone_fd)
{
	struct fuse_loop_config *config;
	int result;

	if (threads == 1)
		return fuse_session_loop(session);
	config = fuse_loop_cfg_create();
	fuse_loop_cfg_set_clone_fd(config, clone_fd);
	fuse_loop_cfg_set_max_threads(config, threads);
	fuse_loop_cfg_set_idle_threads(config, threads);
	result = fuse_session_loop_mt(session, config);
	fuse_loop_cfg_destroy(config);
	return result;
}

int main(int argc, char *argv[])
{
	char *fuse_argv[] = {argv[0], "-o", "max_read=1048576,fsname=libfuse_pread", NULL};
	struct fuse_args arguments = FUSE_ARGS_INIT(3, fuse_argv);
	struct fuse_session *session;
	struct stat attributes;
	unsigned threads = 1;
	int clone_fd = 0;
	int result = -1;

	if (argc < 3) {
		fprintf(stderr, "usage: %s FILE MOUNTPOINT [THREADS] [clone_fd] [splice]\n", argv[0]);
		return 2;
	}
	for (int i = 3; i < argc; i++) {
		if (strcmp(argv[i], "clone_fd") == 0)
			clone_fd = 1;
		else if (strcmp(argv[i], "splice") == 0)
			use_splice = 1;
		else
			threads = (unsigned)strtoul(argv[i], NULL, 10);
	}
	image_fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (image_fd < 0 || fstat(image_fd, &attributes) < 0 || threads == 0) {
		perror(argv[1]);
		return 1;
	}
	image_bytes = attributes.st_size;
	session = fuse_session_new(&arguments, &operations, sizeof operations, NULL);
	if (session == NULL)
		return 1;
	if (fuse_set_signal_handlers(session) == 0) {
		if (fuse_session_mount(session, argv[2]) == 0) {
			result = serve(session, threads, clone_fd);
			fuse_session_unmount(session);
		}
		fuse_remove_signal_handlers(session);
	}
	fuse_session_destroy(session);
	return result < 0; /* the loops return the number of the signal that ended them */
}
