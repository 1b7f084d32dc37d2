// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What SMB requests change.
 *
 * fanotify tells that a file's metadata was changed, but not what of it. For a
 * change that comes through SMB this is known: while there are watches, every
 * request that may change something has a cause, which says by thread, file
 * and completion filter what that is. The daemon fetches the causes after it
 * has read its queue: that of a change which it has read is among those that
 * it fetches then, or was among those that it fetched the time before.
 */

#include <linux/exportfs.h>
#include <linux/list.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/xattr.h>

#include "glob.h"
#include "connection.h"
#include "ksmbd_work.h"
#include "ndr.h"
#include "notify.h"
#include "notify_compat.h"
#include "smb_common.h"
#include "vfs_cache.h"

/* All that a write is told as, see ipc/filter.go. */
#define CHANGE_WRITE	(FILE_NOTIFY_CHANGE_LAST_WRITE | \
			 FILE_NOTIFY_CHANGE_SIZE | \
			 FILE_NOTIFY_CHANGE_ATTRIBUTES)
#define CHANGE_STREAM	(FILE_NOTIFY_CHANGE_STREAM_SIZE | \
			 FILE_NOTIFY_CHANGE_STREAM_WRITE)
#define CHANGE_ANYTHING	(~0u)

/* A request that runs, on its thread's stack. */
struct running {
	struct list_head		entry;
	struct ksmbd_notify_cause	cause;
};

static DEFINE_SPINLOCK(cause_lock);
static LIST_HEAD(causes_running);
static struct ksmbd_notify_cause causes[KSMBD_NOTIFY_MAX_CAUSES];
static unsigned int causes_count;
static bool causes_lost;

static void cause_set_file(struct ksmbd_notify_cause *cause,
			   struct ksmbd_file *fp)
{
	int words = sizeof(cause->handle) / sizeof(u32), type;

	type = exportfs_encode_fid(file_inode(fp->filp),
				   (struct fid *)cause->handle, &words);
	if (type < 0 || type == FILEID_INVALID)
		return;
	cause->handle_bytes = words * sizeof(u32);
	cause->handle_type = type;
}

/* The completion filter of what SET_INFO is about to change. */
static u32 set_info_filter(const struct smb2_set_info_req *req,
			   struct ksmbd_file *fp)
{
	const struct file_basic_info *basic;
	u32 filter = 0;

	if (req->InfoType == SMB2_O_INFO_SECURITY)
		return FILE_NOTIFY_CHANGE_SECURITY;
	if (req->InfoType != SMB2_O_INFO_FILE)
		return CHANGE_ANYTHING;

	switch (req->FileInfoClass) {
	case FILE_BASIC_INFORMATION:
		if (le32_to_cpu(req->BufferLength) < sizeof(*basic))
			return 0;
		basic = (void *)req + le16_to_cpu(req->BufferOffset);
		if (basic->Attributes)
			filter |= FILE_NOTIFY_CHANGE_ATTRIBUTES;
		if (basic->CreationTime)
			filter |= FILE_NOTIFY_CHANGE_CREATION;
		if (basic->LastAccessTime)
			filter |= FILE_NOTIFY_CHANGE_LAST_ACCESS;
		if (basic->LastWriteTime)
			filter |= FILE_NOTIFY_CHANGE_LAST_WRITE;
		return filter;
	case FILE_FULL_EA_INFORMATION:
		return FILE_NOTIFY_CHANGE_EA;
	case FILE_END_OF_FILE_INFORMATION:
	case FILE_ALLOCATION_INFORMATION:
		return ksmbd_stream_fd(fp) ? CHANGE_STREAM : CHANGE_WRITE;
	default:
		return CHANGE_ANYTHING;
	}
}

/*
 * Returns whether CREATE may change anything, and what as far as it can be
 * told beforehand. What a new file has, it came with.
 */
static bool create_filter(const struct smb2_create_req *req, u32 *filter)
{
	const __le16 *name = (void *)req + le16_to_cpu(req->NameOffset);
	int i, units = le16_to_cpu(req->NameLength) / sizeof(*name);
	bool stream = false, creates = true, overwrites = true;

	for (i = 0; i < units && !stream; i++)
		stream = get_unaligned_le16(&name[i]) == ':';
	switch (req->CreateDisposition & FILE_CREATE_MASK_LE) {
	case FILE_OPEN_LE:
		return false;
	case FILE_CREATE_LE:
	case FILE_OPEN_IF_LE:
		overwrites = false;
		break;
	case FILE_OVERWRITE_LE:
		creates = false;
		break;
	}
	*filter = 0;
	if (overwrites)
		*filter |= stream ? CHANGE_STREAM : CHANGE_WRITE;
	if (creates && stream)
		*filter |= FILE_NOTIFY_CHANGE_STREAM_NAME;
	return true;
}

/* Returns whether the request may change metadata, and what of which file. */
static bool cause_begin(struct ksmbd_work *work,
			struct ksmbd_notify_cause *cause)
{
	void *req = ksmbd_req_buf_next(work);
	struct ksmbd_file *fp;
	bool changes = true;
	u64 id;

	cause->filter = CHANGE_ANYTHING;
	switch (((struct smb2_hdr *)req)->Command) {
	case SMB2_CREATE:
		return create_filter(req, &cause->filter);
	case SMB2_TREE_DISCONNECT:
	case SMB2_LOGOFF:
	case SMB2_SESSION_SETUP:
		return true;
	case SMB2_CLOSE:
		id = ((struct smb2_close_req *)req)->VolatileFileId;
		break;
	case SMB2_WRITE:
		id = ((struct smb2_write_req *)req)->VolatileFileId;
		break;
	case SMB2_SET_INFO:
		id = ((struct smb2_set_info_req *)req)->VolatileFileId;
		break;
	case SMB2_IOCTL:
		id = ((struct smb2_ioctl_req *)req)->VolatileFileId;
		break;
	default:
		return false;
	}

	if (!work->sess || !work->tcon)
		return false;
	if (work->next_smb2_rcv_hdr_off && !has_file_id(id))
		id = work->compound_fid;
	fp = ksmbd_lookup_fd_fast(work, id);
	if (!fp)
		return false;
	cause_set_file(cause, fp);

	switch (((struct smb2_hdr *)req)->Command) {
	case SMB2_CLOSE:
		/* It may delete a stream, which is an xattr. */
		changes = ksmbd_stream_fd(fp) &&
			  fp->coption & FILE_DELETE_ON_CLOSE_LE;
		cause->filter = FILE_NOTIFY_CHANGE_STREAM_NAME;
		break;
	case SMB2_WRITE:
		cause->filter = ksmbd_stream_fd(fp) ? CHANGE_STREAM :
						      CHANGE_WRITE;
		break;
	case SMB2_SET_INFO:
		cause->filter = set_info_filter(req, fp);
		break;
	}
	ksmbd_fd_put(work, fp);
	return changes;
}

/* After CREATE it is known which file that was. */
static bool create_end(struct ksmbd_work *work,
		       struct ksmbd_notify_cause *cause)
{
	struct smb2_create_rsp *rsp = ksmbd_resp_buf_next(work);
	struct ksmbd_file *fp;

	if (rsp->hdr.Status)
		return false;
	fp = ksmbd_lookup_fd_fast(work, rsp->VolatileFileId);
	if (!fp)
		return false;
	cause_set_file(cause, fp);
	if (!ksmbd_stream_fd(fp) &&
	    rsp->CreateAction == cpu_to_le32(FILE_CREATED))
		cause->filter = 0;
	ksmbd_fd_put(work, fp);
	return true;
}

/* One cause does for all writes of a thread to a file. */
static bool cause_is_kept(const struct ksmbd_notify_cause *cause)
{
	unsigned int i, recent = min(causes_count, 8u);

	for (i = causes_count - recent; i < causes_count; i++)
		if (!memcmp(&causes[i], cause, sizeof(*cause)))
			return true;
	return false;
}

static void cause_keep(const struct ksmbd_notify_cause *cause)
{
	lockdep_assert_held(&cause_lock);

	if (cause_is_kept(cause))
		return;
	if (causes_count < KSMBD_NOTIFY_MAX_CAUSES)
		causes[causes_count++] = *cause;
	else
		causes_lost = true;
}

/**
 * ksmbd_notify_process() - have a request handled
 * @work:	smb work with the request
 * @proc:	its handler
 *
 * Return:	what @proc returns
 */
int ksmbd_notify_process(struct ksmbd_work *work,
			 int (*proc)(struct ksmbd_work *work))
{
	struct running run = { .cause.handle_type = FILEID_INVALID };
	struct ksmbd_notify_cause *cause = &run.cause;
	bool keep = true;
	int ret;

	/* What began before the first watch may be told as anything. */
	if (!ksmbd_notify_watching() || !cause_begin(work, cause))
		return proc(work);

	cause->thread = task_pid_nr(current);
	spin_lock(&cause_lock);
	list_add_tail(&run.entry, &causes_running);
	spin_unlock(&cause_lock);

	ret = proc(work);

	if (((struct smb2_hdr *)ksmbd_req_buf_next(work))->Command ==
	    SMB2_CREATE)
		keep = create_end(work, cause);
	spin_lock(&cause_lock);
	list_del(&run.entry);
	if (keep)
		cause_keep(cause);
	spin_unlock(&cause_lock);
	return ret;
}

/**
 * ksmbd_notify_set_times() - have times told as such
 * @inode:	of the file, locked
 * @attrs:	what is about to be set
 *
 * fsnotify tells the setting of one time alone as reading, or as writing, which
 * have no cause. So both are set, one of them to what it is.
 */
void ksmbd_notify_set_times(struct inode *inode, struct iattr *attrs)
{
	if (!ksmbd_notify_watching())
		return;
	if (!(attrs->ia_valid & ATTR_ATIME)) {
		attrs->ia_atime = inode_get_atime(inode);
		attrs->ia_valid |= ATTR_ATIME | ATTR_ATIME_SET;
	}
	if (!(attrs->ia_valid & ATTR_MTIME)) {
		attrs->ia_mtime = inode_get_mtime(inode);
		attrs->ia_valid |= ATTR_MTIME | ATTR_MTIME_SET;
	}
}

/**
 * ksmbd_notify_causes() - fetch the causes of changes
 * @to:		room for KSMBD_NOTIFY_MAX_CAUSES
 * @lost:	whether some did not fit, here or earlier
 *
 * Those of requests that still run will be among the next as well.
 *
 * Return:	their number
 */
unsigned int ksmbd_notify_causes(struct ksmbd_notify_cause *to, bool *lost)
{
	struct running *run;
	unsigned int n;

	spin_lock(&cause_lock);
	n = causes_count;
	memcpy(to, causes, n * sizeof(*to));
	causes_count = 0;
	*lost = causes_lost;
	causes_lost = false;
	list_for_each_entry(run, &causes_running, entry) {
		if (n == KSMBD_NOTIFY_MAX_CAUSES) {
			*lost = true;
			break;
		}
		to[n++] = run->cause;
	}
	spin_unlock(&cause_lock);
	return n;
}

/**
 * ksmbd_notify_new_dos_attrib() - store the DOS attributes of a fresh file
 * @idmap:	idmap of the mount
 * @path:	the file
 * @da:		its attributes
 *
 * They belong to the creation: watchers are told of that and of nothing else,
 * so this goes below the layer that tells them.
 *
 * Return:	0 or a negative errno
 */
int ksmbd_notify_new_dos_attrib(struct mnt_idmap *idmap,
				const struct path *path,
				struct xattr_dos_attrib *da)
{
	struct inode *inode = d_inode(path->dentry);
	struct ndr n;
	int err;

	err = ndr_encode_dos_attr(&n, da);
	if (err)
		goto out;
	err = mnt_want_write(path->mnt);
	if (err)
		goto out;
	inode_lock(inode);
	err = __vfs_setxattr(idmap, path->dentry, inode,
			     XATTR_NAME_DOS_ATTRIBUTE, n.data, n.offset, 0);
	inode_unlock(inode);
	mnt_drop_write(path->mnt);
out:
	kfree(n.data);
	return err;
}
