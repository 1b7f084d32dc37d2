// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the user who watches may see of a change: MS-SMB2 leaves that to the
 * server, and a watch tells nothing that a listing would not.
 */

#include <linux/cred.h>
#include <linux/exportfs.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/slab.h>
#include <linux/unaligned.h>

#include "notify_impl.h"
#include "smbacl.h"
#include "unicode.h"

/* Directories of a watch tree whose verdicts are kept. */
#define NOTIFY_MAX_VERDICTS	32

static bool is_vetoed(struct ksmbd_notify_request *req, const char *name,
		      int len)
{
	struct ksmbd_share_config *share = req->work->tcon->share_conf;
	char *copy, *rest, *component;
	bool vetoed = false;

	if (list_empty(&share->veto_list))
		return false;
	copy = kmemdup_nul(name, len, KSMBD_DEFAULT_GFP);
	if (!copy) {
		req->lost = true;
		return true;
	}
	rest = copy;
	while (!vetoed && (component = strsep(&rest, "/")))
		vetoed = ksmbd_share_veto_filename(share, component);
	kfree(copy);
	return vetoed;
}

static int any_dentry(void *context, struct dentry *dentry)
{
	return 1;
}

/* Whether the user may list a directory that can be got to. */
static bool is_listable(struct ksmbd_notify_request *req,
			const struct path *path)
{
	struct ksmbd_work *work = req->work;

	if (inode_permission(mnt_idmap(path->mnt), d_inode(path->dentry),
			     MAY_READ | MAY_EXEC))
		return false;
	return !test_share_config_flag(work->tcon->share_conf,
				       KSMBD_SHARE_FLAG_ACL_XATTR) ||
	       notify_dacl_grants(work->conn, path, FILE_LIST_DIRECTORY_LE,
				  work->sess->user->uid);
}

static bool is_handle_of(const struct file_handle *fh, struct inode *inode)
{
	u32 fid[MAX_HANDLE_SZ / sizeof(u32)];
	int words = ARRAY_SIZE(fid), type;

	type = exportfs_encode_fid(inode, (struct fid *)fid, &words);
	return type == fh->handle_type &&
	       words * sizeof(u32) == fh->handle_bytes &&
	       !memcmp(fid, fh->f_handle, fh->handle_bytes);
}

/* Looks up the directory that @name is in, from the watched one. */
static int lookup_parent(struct ksmbd_notify_request *req, const char *name,
			 int len, unsigned int flags, struct path *path)
{
	const struct path *top = &req->dir->f_path;
	char *copy;
	int err;

	copy = kmemdup_nul(name, len, KSMBD_DEFAULT_GFP);
	if (!copy)
		return -ENOMEM;
	*strrchr(copy, '/') = '\0';
	err = vfs_path_lookup(top->dentry, top->mnt, copy,
			      LOOKUP_DIRECTORY | LOOKUP_BENEATH |
			      LOOKUP_NO_SYMLINKS | flags, path);
	kfree(copy);
	return err;
}

static bool can_open_handles(struct ksmbd_notify_request *req)
{
	return exportfs_can_decode_fh(file_inode(req->dir)->i_sb->s_export_op);
}

/*
 * Finds the directory @fh, that @name is in, where handles cannot be opened, as
 * on overlayfs without nfs_export. By that name it may be another by now.
 */
static struct dentry *find_named(struct ksmbd_notify_request *req,
				 const struct file_handle *fh,
				 const char *name, int len)
{
	struct dentry *dentry = NULL;
	const struct cred *user;
	struct path path;

	/* Not as the user: it may be another directory, of which nothing is asked. */
	user = override_creds(req->work->saved_cred);
	if (!lookup_parent(req, name, len, LOOKUP_NO_XDEV, &path)) {
		if (is_handle_of(fh, d_inode(path.dentry)))
			dentry = dget(path.dentry);
		path_put(&path);
	}
	revert_creds(user);
	return dentry;
}

/*
 * Whether the user may list the directory @fh, that @name is in, and get there
 * from the watched one: 1, 0, or -ENOENT if it is not below that any more.
 */
static int may_list(struct ksmbd_notify_request *req,
		    const struct file_handle *fh, const char *name, int len)
{
	struct path path = { .mnt = req->dir->f_path.mnt };
	struct dentry *dentry, *parent;
	int may;

	if (can_open_handles(req))
		path.dentry = exportfs_decode_fh(path.mnt,
						 (struct fid *)fh->f_handle,
						 fh->handle_bytes >> 2,
						 fh->handle_type, any_dentry,
						 NULL);
	else
		path.dentry = find_named(req, fh, name, len);
	if (IS_ERR_OR_NULL(path.dentry))
		return -ENOENT;

	may = is_listable(req, &path);
	for (dentry = dget(path.dentry);
	     may >= 0 && dentry != req->dir->f_path.dentry; dentry = parent) {
		if (IS_ROOT(dentry) || d_unhashed(dentry))
			may = -ENOENT;
		else if (inode_permission(mnt_idmap(path.mnt), d_inode(dentry),
					  MAY_EXEC))
			may = 0;
		parent = dget_parent(dentry);
		dput(dentry);
	}
	dput(dentry);
	dput(path.dentry);
	if (may > 0 && inode_permission(mnt_idmap(path.mnt),
					file_inode(req->dir), MAY_EXEC))
		may = 0;
	return may;
}

/*
 * The same of the directory that @name is in, below another mount, for which
 * there is no handle. In place of a mount's root ksmbd finds the directory that
 * is under it, unless the share crosses mounts; what is below that root it finds.
 */
static int may_list_mounted(struct ksmbd_notify_request *req, const char *name,
			    int len)
{
	struct path path;
	int may;

	may = lookup_parent(req, name, len, 0, &path);
	if (may)
		return may == -EACCES ? 0 : -ENOENT;
	if (path.dentry == path.mnt->mnt_root &&
	    !test_share_config_flag(req->work->tcon->share_conf,
				    KSMBD_SHARE_FLAG_CROSSMNT))
		may = 0;
	else
		may = is_listable(req, &path);
	path_put(&path);
	return may;
}

static bool same_handle(const struct file_handle *a,
			const struct file_handle *b)
{
	return a->handle_bytes == b->handle_bytes &&
	       !memcmp(a, b, sizeof(*a) + a->handle_bytes);
}

static struct notify_verdict *verdict_find(struct notify_watch *watch,
					   const struct file_handle *fh)
{
	struct notify_verdict *verdict;

	lockdep_assert_held(&notify_lock);

	list_for_each_entry(verdict, &watch->verdicts, entry)
		if (same_handle((void *)verdict->handle, fh)) {
			list_move(&verdict->entry, &watch->verdicts);
			return verdict;
		}
	return NULL;
}

/* Keeps what was found, for when the directory is gone. */
static void verdict_keep(struct notify_watch *watch,
			 const struct file_handle *fh, bool may)
{
	size_t len = sizeof(*fh) + fh->handle_bytes;
	struct notify_verdict *verdict, *spare;

	spare = kmalloc(struct_size(spare, handle, len), KSMBD_DEFAULT_GFP);
	if (spare)
		memcpy(spare->handle, fh, len);

	spin_lock(&notify_lock);
	verdict = verdict_find(watch, fh);
	if (!verdict && spare) {
		verdict = spare;
		spare = NULL;
		if (watch->verdict_count == NOTIFY_MAX_VERDICTS) {
			spare = list_last_entry(&watch->verdicts,
						struct notify_verdict, entry);
			list_del(&spare->entry);
		} else {
			watch->verdict_count++;
		}
		list_add(&verdict->entry, &watch->verdicts);
	}
	if (verdict)
		verdict->may = may;
	spin_unlock(&notify_lock);
	kfree(spare);
}

/* What was found last of a directory that is gone, or -ENOENT. */
static int verdict_recall(struct notify_watch *watch,
			  const struct file_handle *fh)
{
	struct notify_verdict *verdict;
	int may = -ENOENT;

	spin_lock(&notify_lock);
	verdict = verdict_find(watch, fh);
	if (verdict)
		may = verdict->may;
	spin_unlock(&notify_lock);
	return may;
}

/*
 * Whether the user could not have seen @name, whose directory is gone, in any
 * case. Nobody can tell that of the directory itself, but of what is above it.
 */
static bool was_hidden(struct ksmbd_notify_request *req, const char *name,
		       int len)
{
	char *copy = kmemdup_nul(name, len, KSMBD_DEFAULT_GFP);
	const struct path *top = &req->dir->f_path;
	struct path path;
	bool hidden = false;
	int err = -ENOENT;
	char *end;

	if (!copy)
		return false;
	*strrchr(copy, '/') = '\0';
	while (err && !hidden && (end = strrchr(copy, '/'))) {
		*end = '\0';
		err = vfs_path_lookup(top->dentry, top->mnt, copy,
				      LOOKUP_DIRECTORY | LOOKUP_BENEATH |
				      LOOKUP_NO_SYMLINKS, &path);
		if (!err) {
			hidden = inode_permission(mnt_idmap(path.mnt),
						  d_inode(path.dentry),
						  MAY_EXEC);
			path_put(&path);
		} else if (err == -EACCES) {
			hidden = true;
		}
	}
	kfree(copy);
	return hidden;
}

static bool may_see(struct ksmbd_notify_request *req, const char *name, int len,
		    const struct file_handle *fh)
{
	if (is_vetoed(req, name, len))
		return false;
	if (!fh)
		return true;
	if (fh->handle_type == FILEID_INVALID) {
		req->may_list = may_list_mounted(req, name, len);
		fh = NULL;
	} else if (!req->listed || !same_handle(req->listed, fh)) {
		req->may_list = may_list(req, fh, name, len);
		/* One that was not found by its name may still be there. */
		if (can_open_handles(req)) {
			if (req->may_list < 0)
				req->may_list = verdict_recall(req->watch, fh);
			else
				verdict_keep(req->watch, fh, req->may_list);
		}
	}
	req->listed = fh;
	/* Nobody knows whether the user may see it: the client must list anew. */
	if (req->may_list < 0 && !was_hidden(req, name, len))
		req->lost = true;
	return req->may_list > 0;
}

/* Adds a change record to the response. What the user may not see is withheld. */
static void request_add(struct ksmbd_notify_request *req,
			const struct notify_record *record)
{
	const struct file_handle *fh = (const void *)record->data;
	const char *name = record->data + ALIGN(record->handle_length, 4);
	struct smb2_change_notify_rsp *rsp = smb_get_msg(req->response);
	u32 off = ALIGN(req->length, 4), action = record->action;
	struct notify_information *info = (void *)(rsp->Buffer + off);
	bool old_withheld = req->old_withheld;
	int i, units, len = record->name_length;

	if (req->lost)
		return;
	if (!may_see(req, name, len, record->handle_length ? fh : NULL)) {
		/* Of a rename, the half that is told stands alone. */
		req->old_withheld =
			action == KSMBD_NOTIFY_ACTION_RENAMED_OLD_NAME;
		if (action == KSMBD_NOTIFY_ACTION_RENAMED_NEW_NAME &&
		    req->last && !old_withheld)
			req->last->action =
				cpu_to_le32(KSMBD_NOTIFY_ACTION_REMOVED);
		return;
	}
	if (action == KSMBD_NOTIFY_ACTION_RENAMED_NEW_NAME && old_withheld)
		action = KSMBD_NOTIFY_ACTION_ADDED;
	req->old_withheld = false;

	if (req->last)
		req->last->next = cpu_to_le32((u8 *)info - (u8 *)req->last);
	req->last = info;

	/* As QUERY_DIRECTORY names it, but for the separator. */
	units = smbConvertToUTF16(info->name, name, len,
				  req->work->conn->local_nls, 0);
	for (i = 0; i < units; i++)
		if (get_unaligned_le16(&info->name[i]) == '/')
			put_unaligned_le16('\\', &info->name[i]);
	info->next = 0;
	info->action = cpu_to_le32(action);
	info->name_length = cpu_to_le32(units * sizeof(__le16));
	req->length = off + sizeof(*info) + units * sizeof(__le16);
}

/**
 * notify_request_fill() - make a response of what the daemon has told
 * @req:	the request, nobody else's; its response is made
 * @told:	by the daemon
 *
 * Of what is below the watched directory it asks the filesystem, under the
 * identity of the request's user.
 *
 * Return:	how @req ends: STATUS_SUCCESS with records, another status without,
 *		or STATUS_PENDING if the user may see none of them
 */
__le32 notify_request_fill(struct ksmbd_notify_request *req,
			   struct notify_told *told)
{
	const struct notify_record *record;
	size_t off;

	if (told->status == KSMBD_NOTIFY_STATUS_DELETE_PENDING)
		return STATUS_DELETE_PENDING;
	if (told->status)
		return STATUS_NOTIFY_ENUM_DIR;

	/* smbConvertToUTF16() terminates its output: one unit more. */
	req->response = kvzalloc(sizeof(__be32) +
				 sizeof(struct smb2_change_notify_rsp) +
				 told->room + sizeof(__le16),
				 KSMBD_DEFAULT_GFP);
	/* Without an identity, where it is asked for, nothing can be told. */
	if (!req->response || (told->below && ksmbd_override_fsids(req->work)))
		return STATUS_NOTIFY_ENUM_DIR;
	req->dir = told->dir;
	req->length = 0;
	req->last = NULL;
	req->listed = NULL;
	req->old_withheld = false;
	req->lost = false;
	for (off = 0; off < told->length; off += record->size) {
		record = (const void *)told->records + off;
		request_add(req, record);
	}
	if (told->below)
		ksmbd_revert_fsids(req->work);
	req->dir = NULL;

	if (req->lost || req->length > req->limit)
		return STATUS_NOTIFY_ENUM_DIR;
	if (req->length)
		return STATUS_SUCCESS;
	kvfree(req->response);
	req->response = NULL;
	return STATUS_PENDING;
}
